x = <<EOF
body $A ${B}
EOF
