	.section .rodata
	.global descriptors
	.global descriptors_end
	.type descriptors, @object
	.type descriptors_end, @object
descriptors:
	.incbin "descriptors.bin"
	.size descriptors, . - descriptors
descriptors_end:
	.section .note.GNU-stack, "", @progbits
