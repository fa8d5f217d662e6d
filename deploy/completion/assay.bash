# Completion of assay-server and assay-agent for bash. What there is comes from the programs themselves (`__table`).
# shellcheck shell=bash

# The words of the line that name a command: those before the first flag.
_assay_command() {
	local table=$1 i words='' found='' left=${#COMP_WORDS[@]}
	for ((i = 1; i < COMP_CWORD && i < left; i++)); do
		[[ ${COMP_WORDS[i]} == -* ]] && break
		words+=${words:+ }${COMP_WORDS[i]}
		if grep -q "^command	$words	" <<<"$table"; then
			found=$words
		fi
	done
	printf '%s' "${found:-$words}"
}

# Words that may follow the ones given.
_assay_next() {
	local table=$1 prefix=$2
	awk -F '\t' -v prefix="$prefix" '$1 == "command" {
		name = $2
		if (prefix != "") {
			if (index(name, prefix " ") != 1) next
			name = substr(name, length(prefix) + 2)
		}
		split(name, w, " ")
		print w[1]
	}' <<<"$table" | sort -u
}

# TYPE<tab>CHOICES of one flag
_assay_flag() {
	awk -F '\t' -v cmd="$2" -v flag="$3" '$1 == "flag" && $2 == cmd && $3 == flag {print $4 "\t" $5}' <<<"$1"
}

_assay() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} table cmd spec type choices
	COMPREPLY=()
	table=$("${COMP_WORDS[0]}" __table 2>/dev/null) || return
	cmd=$(_assay_command "$table")
	if [[ $prev == -* ]]; then
		spec=$(_assay_flag "$table" "$cmd" "-${prev##*-}")
		type=${spec%%	*} choices=${spec#*	}
		if [[ -n $spec && $type != bool ]]; then
			case $choices in
			@file) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
			@dir) mapfile -t COMPREPLY < <(compgen -d -- "$cur") ;;
			*) mapfile -t COMPREPLY < <(compgen -W "${choices//|/ }" -- "$cur") ;;
			esac
			return
		fi
	fi
	if [[ $cur == -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$(awk -F '\t' -v cmd="$cmd" '$1 == "flag" && $2 == cmd {print $3}' <<<"$table") -help" -- "$cur")
	else
		mapfile -t COMPREPLY < <(compgen -W "$(_assay_next "$table" "$cmd")" -- "$cur")
	fi
}
complete -o filenames -F _assay assay-server assay-agent
