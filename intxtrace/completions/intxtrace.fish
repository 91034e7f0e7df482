# fish completion for intxtrace: intxtrace itself says what fits; where it says nothing, file names do.

function __intxtrace_complete
    set -l line (commandline -cp)
    set -l option (string match --regex -- '^--[a-z-]+=' (commandline -ct))
    set -l found (_INTXTRACE_COMPLETE=fish _TYPER_COMPLETE_ARGS="$line" intxtrace 2>/dev/null)
    if test -n "$found"
        printf "$option%s\n" $found
    else
        __fish_complete_path (commandline -ct)
    end
end

complete --command intxtrace --no-files --arguments '(__intxtrace_complete)'
