#!/bin/sh
# dtx - DTX from the command line.  It only reads and writes files under the mount, so it also works on an NFS client.
# The mount is $DTX, else where this script lies, else /dtx.
set -u

usage() {
    cat <<'EOF'
usage: dtx COMMAND ...
  status [EXP[/JOB]]       the appliance, an experiment or a job
  ls [COLLECTION]          experiments, datasets, paramgroups, evaluations, models, services, plugins, compare
  new KIND NAME            copy a template to ./NAME.json: paramgroup, experiment, evaluation, dataset, service, compare,
                           plugin
  run EXP.json             start an experiment, show its progress, then its leaderboard
  watch EXP                show its progress until it ends
  wait EXP                 wait until it ends; the exit status is 0 for SUCCESS
  log [-f] [EXP[/JOB]]     its log; -f follows it
  leaderboard EXP          its jobs by score
  best EXP                 its best job
  ask MODEL "PROMPT"       ask one model: NAME in models/base or models/tuned, e.g. EXP.best
  ask compare "PROMPT"     ask all models, side by side
  compare FILE.txt         the same with the prompt in a file
  pause|resume|cancel|stop|retry EXP[/JOB]
  help                     this text
The exit status is 0 if it worked, 1 if it failed, 2 for a wrong command line.  The mount is $DTX, else where this
script lies, else /dtx.
EOF
}

die() {
    printf 'dtx: %s\n' "$*" >&2
    exit 1
}

misuse() {
    printf 'dtx: %s (dtx help shows the commands)\n' "$*" >&2
    exit 2
}

is_mount() {
    [ -e "$1/README.md" ] && [ -d "$1/experiments" ] && [ -d "$1/templates" ]
}

find_mount() {
    if [ -n "${DTX:-}" ]; then
        root=$DTX
    else
        self=$(readlink -f "$0" 2>/dev/null) || self=$0
        root=$(cd "$(dirname "$self")/.." 2>/dev/null && pwd) || root=
        if [ -z "$root" ] || ! is_mount "$root"; then
            root=/dtx
        fi
    fi
    is_mount "$root" || die "no DTX mount at $root; set DTX to the folder where it is mounted"
}

# Tab-separated lines as aligned columns.
columns() {
    awk -F '\t' '
        { for (i = 1; i <= NF; i++) { cell[NR, i] = $i; if (length($i) > width[i]) width[i] = length($i) } fields[NR] = NF }
        END {
            for (r = 1; r <= NR; r++) {
                line = ""
                for (i = 1; i <= fields[r]; i++)
                    line = line (i < fields[r] ? sprintf("%-" width[i] "s  ", cell[r, i]) : cell[r, i])
                print line
            }
        }'
}

first_line() {
    sed -n 1p "$1" 2>/dev/null
}

# Folder of an experiment (EXP) or a job (EXP/JOB).
folder_of() {
    case $1 in
    */*/* | /* | */) misuse "$1: expected EXP or EXP/JOB" ;;
    */*) folder=$root/experiments/${1%%/*}/jobs/${1#*/} ;;
    *) folder=$root/experiments/${1%.json} ;;
    esac
    [ -d "$folder" ] && return
    if [ -e "$folder.status" ]; then
        cat "$folder.status" >&2
        exit 1
    fi
    die "$1: there is no such experiment or job (dtx ls experiments)"
}

state_of() {
    state=$(first_line "$root/experiments/$1.status")
}

has_ended() {
    case $1 in
    SUCCESS | FAILED | CANCELLED | REJECTED) return 0 ;;
    esac
    return 1
}

list_one() {
    printf '%s\n' "$1"
    columns <"$root/$1/LIST.tsv" | sed 's/^/  /'
}

cmd_ls() {
    case ${1:-all} in
    all)
        for c in models/base datasets paramgroups evaluations experiments models/tuned; do
            list_one "$c"
        done
        ;;
    models)
        list_one models/base
        list_one models/tuned
        ;;
    plugins)
        list_one plugins/data
        list_one plugins/scoring
        ;;
    compare) list_one models/compare ;;
    experiments | datasets | paramgroups | evaluations | services) list_one "$1" ;;
    *) misuse "ls $1: no such collection" ;;
    esac
}

cmd_status() {
    if [ $# -eq 0 ]; then
        cat "$root/status"
    else
        folder_of "$1"
        cat "$folder/status"
    fi
}

cmd_new() {
    [ $# -eq 2 ] || misuse "new: expected KIND NAME"
    name=${2%.json}
    [ -e "$root/templates/$1.json" ] || misuse "new $1: no such kind of spec"
    [ -e "$name.json" ] && die "$name.json is there already"
    cp "$root/templates/$1.json" "$name.json" && chmod u+w "$name.json" || exit 1
    case $1 in
    experiment) next="dtx run $name.json" ;;
    dataset) next="cp $name.json $root/datasets/NAME/dataset.json" ;;
    plugin) next="cp $name.json $root/plugins/scoring/NAME/plugin.json" ;;
    compare) next="put its keys between two lines --- at the top of a prompt" ;;
    *) next="cp $name.json $root/${1}s/" ;;
    esac
    printf '%s.json: edit it, then: %s\n' "$name" "$next"
}

show_progress() {
    printf '%s: %s\n' "$1" "$state"
    cat "$root/experiments/$1/progress" 2>/dev/null
}

# Until the experiment has ended: on a terminal a screen that is drawn anew, elsewhere lines when the state changes and
# every 15 s.  $2 is "quiet" to show nothing.
follow() {
    shown=
    ticks=0
    while :; do
        state_of "$1"
        [ -n "$state" ] || die "$1: there is no such experiment (dtx ls experiments)"
        if [ "$2" = quiet ]; then
            :
        elif [ -t 1 ]; then
            text=$(show_progress "$1")
            printf '\033[H\033[J%s\n' "$text"
        elif [ "$shown" != "$state" ] || [ "$ticks" -ge 15 ]; then
            show_progress "$1"
            shown=$state
            ticks=0
        fi
        has_ended "$state" && break
        ticks=$((ticks + 1))
        sleep 1
    done
}

# How it ended, as text and as exit status.
conclude() {
    case $state in
    SUCCESS) return 0 ;;
    esac
    cat "$root/experiments/$1.status" >&2
    return 1
}

cmd_wait() {
    follow "$1" quiet
    printf '%s\n' "$state"
    conclude "$1"
}

cmd_watch() {
    follow "$1" show
    conclude "$1"
}

cmd_run() {
    case $1 in
    *.json) [ -f "$1" ] || die "$1: there is no such file" ;;
    *) misuse "run $1: expected a file NAME.json" ;;
    esac
    name=$(basename "$1" .json)
    spec=$root/experiments/$name.json
    from=$(cd "$(dirname "$1")" && pwd -P)
    if [ "$from" != "$(cd "$root/experiments" && pwd -P)" ]; then
        # A file that is renamed into place is taken at once.
        part=$root/experiments/.$name.json.$$
        if ! { cp "$1" "$part" && mv -f "$part" "$spec"; }; then
            rm -f "$part"
            die "$1: it could not be put into $root/experiments"
        fi
    fi
    tries=0
    until [ -e "$root/experiments/$name.status" ] || [ "$tries" -ge 10 ]; do
        tries=$((tries + 1))
        sleep 1
    done
    follow "$name" show
    conclude "$name" || return 1
    printf '\n'
    columns <"$root/experiments/$name/leaderboard.tsv"
    printf '\n'
    cat "$root/experiments/$name/best"
}

cmd_log() {
    file=$root/log
    follow_it=no
    if [ "${1:-}" = -f ]; then
        follow_it=yes
        shift
    fi
    if [ $# -gt 0 ]; then
        folder_of "$1"
        file=$folder/log
    fi
    if [ "$follow_it" = yes ]; then
        exec tail -n +1 -f "$file"
    fi
    cat "$file"
}

cmd_control() {
    folder_of "$2"
    if ! printf '%s\n' "$1" >"$folder/control"; then
        printf 'dtx: %s: %s was refused; its status is:\n' "$2" "$1" >&2
        cat "$folder/status" >&2
        exit 1
    fi
}

# Wait for the answers to models/compare/$1.txt and show them.
answers() {
    ticks=0
    while :; do
        state=$(first_line "$root/models/compare/$1.status")
        case $state in
        DONE) break ;;
        FAILED | REJECTED)
            cat "$root/models/compare/$1.status" >&2
            exit 1
            ;;
        esac
        ticks=$((ticks + 1))
        [ -z "$state" ] && [ "$ticks" -gt 20 ] && die "models/compare/$1.txt is not taken up; see $root/log"
        sleep 1
    done
    cat "$root/models/compare/$1/answers.md"
    printf '\n(all of it: %s/models/compare/%s/)\n' "$root" "$1"
}

# Put stdin into models/compare/$1.txt in one go.
drop_prompt() {
    part=$root/models/compare/.$1.txt.$$
    if ! { cat >"$part" && mv -f "$part" "$root/models/compare/$1.txt"; }; then
        rm -f "$part"
        die "the prompt could not be put into $root/models/compare"
    fi
}

model_name() {
    case $1 in
    *[\"\\]*) die "$1: a model's name with a quote or backslash can only be asked through a file (dtx compare)" ;;
    esac
    if [ -e "$root/models/tuned/${1#tuned/}" ]; then
        model=tuned/${1#tuned/}
    elif [ -e "$root/models/base/$1" ]; then
        model=$1
    else
        die "$1: there is no such model (dtx ls models)"
    fi
}

cmd_ask() {
    [ $# -eq 2 ] || misuse "ask: expected MODEL \"PROMPT\""
    name=ask-$(date +%Y%m%d-%H%M%S)-$$
    if [ "$1" = compare ]; then
        printf -- '---\n{}\n---\n%s\n' "$2" | drop_prompt "$name" || exit 1
    else
        model_name "$1"
        printf -- '---\n{"models": ["%s"]}\n---\n%s\n' "$model" "$2" | drop_prompt "$name" || exit 1
    fi
    answers "$name"
}

cmd_compare() {
    [ -f "$1" ] || die "$1: there is no such file"
    name=$(basename "$1" .txt)
    drop_prompt "$name" <"$1"
    answers "$name"
}

need_one() {
    [ "$2" -eq 1 ] || misuse "$1: expected one name"
}

main() {
    command=${1:-help}
    [ $# -gt 0 ] && shift
    case $command in
    help | -h | --help)
        usage
        exit 0
        ;;
    esac
    find_mount
    case $command in
    status) cmd_status "$@" ;;
    ls | list) cmd_ls "$@" ;;
    new) cmd_new "$@" ;;
    log) cmd_log "$@" ;;
    ask) cmd_ask "$@" ;;
    run | watch | wait | compare)
        need_one "$command" $#
        "cmd_$command" "$1"
        ;;
    leaderboard)
        need_one "$command" $#
        folder_of "$1"
        columns <"$folder/leaderboard.tsv"
        ;;
    best)
        need_one "$command" $#
        folder_of "$1"
        cat "$folder/best"
        ;;
    pause | resume | cancel | stop | retry)
        need_one "$command" $#
        cmd_control "$command" "$1"
        ;;
    *) misuse "$command: no such command" ;;
    esac
}

main "$@"
