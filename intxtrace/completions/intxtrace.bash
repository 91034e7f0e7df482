# bash completion for intxtrace: intxtrace itself says what fits; where it says nothing, file names do.

_intxtrace() {
    local line=${COMP_LINE:0:COMP_POINT} before candidate value meaning
    # readline replaces what follows the last colon or =, which a PCI address and --option=value have.
    before=${line##*[[:space:]]}
    case $before in
        *[:=]*) before=${before%"${before##*[:=]}"} before=${before#--*=} ;;
        *) before= ;;
    esac
    [[ $COMP_WORDBREAKS == *:* ]] || before=
    COMPREPLY=()
    while IFS= read -r candidate; do
        value=${candidate%%$'\t'*} meaning=${candidate#*$'\t'}
        COMPREPLY+=("${value#"$before"}")
        case $meaning in
            'a trace') compopt -o filenames ;;
            'a folder') compopt -o filenames -o nospace ;;
        esac
    done < <(_INTXTRACE_COMPLETE=bash _TYPER_COMPLETE_ARGS=$line "$1" 2>/dev/null)
}

complete -o default -F _intxtrace intxtrace
