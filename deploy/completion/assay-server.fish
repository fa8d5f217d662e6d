# Completion of assay-server for fish. What there is comes from the program itself (`__table`).

# The words before the first flag that name a command.
function __assay_server_command
    set -l table $argv
    set -l found ''
    set -l words ''
    for w in (commandline -opc)[2..-1]
        string match -q -- '-*' $w; and break
        set words (string trim "$words $w")
        if string match -q -- "command	$words	*" $table
            set found $words
        end
    end
    test -n "$found"; and echo $found; or echo $words
end

function __assay_server_complete
    set -l table (assay-server __table 2>/dev/null)
    set -l cmd (__assay_server_command $table)
    set -l cur (commandline -ct)
    set -l prev (commandline -opc)[-1]
    if string match -q -- '-*' $prev
        set -l name (string replace -r '^-+' '-' -- $prev)
        for line in $table
            set -l f (string split \t -- $line)
            if test "$f[1]" = flag -a "$f[2]" = "$cmd" -a "$f[3]" = "$name" -a "$f[4]" != bool
                switch $f[5]
                    case '@file' '@dir'
                        __fish_complete_path $cur
                    case '*'
                        string split '|' -- $f[5]
                end
                return
            end
        end
    end
    for line in $table
        set -l f (string split \t -- $line)
        if string match -q -- '-*' $cur
            test "$f[1]" = flag -a "$f[2]" = "$cmd"; and printf '%s\t%s\n' $f[3] $f[6]
        else if test "$f[1]" = command
            set -l rest $f[2]
            if test -n "$cmd"
                string match -q -- "$cmd *" $rest; or continue
                set rest (string replace -- "$cmd " '' $rest)
            end
            set -l w (string split ' ' -- $rest)
            if test (count $w) -eq 1
                printf '%s\t%s\n' $w[1] $f[3]
            else
                echo $w[1]
            end
        end
    end | sort -u
end

complete -c assay-server -f -a '(__assay_server_complete)'
