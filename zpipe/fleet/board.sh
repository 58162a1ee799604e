# What zpipe does on a board, read by `sh -s -- VERB FOLDER ...`: POSIX sh and what every Linux has, busybox too.
# Answers are lines `WORD VALUE`; ranks follow each other, each begun by a line `rank N`. Errors are one line `error TEXT`.
export LC_ALL=C PYTHONUNBUFFERED=1
verb=$1 folder=$2
shift 2
fail() { echo "error $*"; exit 1; }

# ---- zpipe there ---------------------------------------------------------------------------------

# Sets $zpipe: what was asked for, the folder's own, the one on the path, or where pip puts it for a user.
find_zpipe() {
    case $1 in
        '') ;;
        /*) zpipe=$1; [ -x "$zpipe" ]; return ;;
        *) zpipe=$HOME/$1; [ -x "$zpipe" ]; return ;;
    esac
    for zpipe in "$PWD/.venv/bin/zpipe" "$(command -v zpipe)" "$HOME/.local/bin/zpipe"; do
        [ -x "$zpipe" ] && return
    done
    return 1
}

# ---- processes -----------------------------------------------------------------------------------

boot() { cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo none; }

# Clock ticks after the boot at which a process began; nothing of one that is gone, or of which only its exit code is left.
began() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | { read -r state rest && [ "$state" != Z ] && echo "$rest" | cut -d' ' -f19; }; }

# Sets $pid; true while the process runs that wrote the file: another one of that number began at another time, or after another boot.
alive() {
    pid='' tick='' up=''
    [ -r "$1" ] && read -r pid tick up < "$1"
    [ -n "$up" ] && [ "$up" = "$(boot)" ] && [ "$(began "$pid")" = "$tick" ]
}

age() { echo "age $(($(cut -d. -f1 /proc/uptime) - tick / $(getconf CLK_TCK 2>/dev/null || echo 100)))"; }

# ---- systemd -------------------------------------------------------------------------------------

# Sets $scope: whose manager has the unit, the user's or the machine's; nothing where neither has.
manager() {
    scope=''
    command -v systemctl >/dev/null || return
    export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$(id -u)}"
    if systemctl --user cat "$1" >/dev/null 2>&1; then scope=user
    elif systemctl cat "$1" >/dev/null 2>&1; then scope=system
    fi
}

# Changes what runs: as root where it is the machine's.
control() {
    if [ $scope = user ]; then systemctl --user "$@"
    elif [ "$(id -u)" = 0 ]; then systemctl "$@"
    else sudo -n systemctl "$@"
    fi
}

# Asks; everybody may.
ask() { if [ $scope = user ]; then systemctl --user "$@"; else systemctl "$@"; fi; }
journal() { if [ $scope = user ]; then journalctl --user -q -o cat "$@"; else journalctl -q -o cat "$@"; fi 2>/dev/null; }
property() { ask show "$unit" -p "$1" --value 2>/dev/null; }

# ---- a node --------------------------------------------------------------------------------------

# Sets the names of one rank's things. Arguments: rank, unit without its rank, name of the topology.
name_node() {
    rank=$1 unit="${2%@.service}@$1.service"
    file=fleet/$3-node$1.pid log=fleet/$3-node$1.log
}

last_line() {
    if [ -n "$scope" ]; then line=$(journal -u "$unit" -n 1); else line=$(tail -n 20 "$log" 2>/dev/null | grep . | tail -n 1); fi
    [ -z "$line" ] || echo "line $line"
}

# States: `running` (a process is there), `restarting` (systemd waits to try again), `stopped` (it was, or never ran), `dead`.
state() {
    if alive "$file"; then
        echo "how process"; echo "state running"; echo "pid $pid"; age
        scope=''
    elif [ -n "$scope" ]; then
        echo "how systemd"
        case $(property ActiveState) in
            active | reloading | deactivating)
                pid=$(property MainPID) tick=$(began "$pid")
                echo "state running"; echo "pid $pid"
                [ -z "$tick" ] || age ;;
            activating) if [ "$(property SubState)" = auto-restart ]; then echo "state restarting"; else echo "state running"; fi ;;
            failed) echo "state dead" ;;
            *) echo "state stopped" ;;
        esac
        again=$(property NRestarts)
        [ "${again:-0}" = 0 ] || echo "restarts $again"
    elif [ -e "$file" ]; then echo "how process"; echo "state dead"
    else echo "how process"; echo "state stopped"
    fi
    last_line
}

# Arguments: topology, seconds to wait until it serves, arguments of `zpipe node`.
start_node() {
    topology=$1 patience=$2
    shift 2
    if alive "$file" || { [ -n "$scope" ] && [ "$(property ActiveState)" = active ]; }; then
        echo "already yes"; state; return
    fi
    if [ -n "$scope" ]; then
        said=$(control start "$unit" 2>&1) || { echo "how systemd"; echo "state dead"; echo "line $(echo "$said" | head -n 1)"; return; }
        await_unit "$patience"; state; return
    fi
    mkdir -p fleet && touch "$log" || { echo "state dead"; echo "line $folder/fleet cannot be written"; return; }
    [ "$(wc -c < "$log")" -lt 10000000 ] || { mv "$log" "$log.1"; : > "$log"; }
    before=$(wc -c < "$log")
    # A session of its own: it stays when this one ends.
    setsid "$zpipe" node --rank "$rank" --topology "$topology" "$@" </dev/null >>"$log" 2>&1 9>&- &
    pid=$!
    echo "$pid $(began $pid) $(boot)" > "$file.new" && mv "$file.new" "$file"
    left=$((patience * 5))
    while alive "$file" && ! tail -c "+$((before + 1))" "$log" | grep -q "^node $rank serves"; do
        [ $left -gt 0 ] || { echo "waiting yes"; break; }
        left=$((left - 1))
        sleep 0.2 2>/dev/null || { sleep 1; left=$((left - 4)); }
    done
    state
}

await_unit() {
    left=$(($1 * 2))
    while [ $left -gt 0 ]; do
        journal "_SYSTEMD_INVOCATION_ID=$(property InvocationID)" | grep -q "^node $rank serves" && return
        case $(property ActiveState)/$(property SubState) in failed/* | */auto-restart) return ;; esac
        left=$((left - 1))
        sleep 0.5 2>/dev/null || sleep 1
    done
    echo "waiting yes"
}

# Argument: seconds until it is killed.
stop_node() {
    if alive "$file"; then
        kill -TERM "$pid" 2>/dev/null
        left=$(($1 * 5))
        while alive "$file" && [ $left -gt 0 ]; do left=$((left - 1)); sleep 0.2 2>/dev/null || { sleep 1; left=$((left - 4)); }; done
        if alive "$file"; then kill -KILL "$pid"; echo "killed yes"; fi
        echo "was running"
    elif [ -n "$scope" ] && [ "$(property ActiveState)" != inactive ]; then
        said=$(control stop "$unit" 2>&1) || { echo "how systemd"; echo "state running"; echo "line $(echo "$said" | head -n 1)"; return; }
        control reset-failed "$unit" 2>/dev/null
        echo "was running"
    fi
    rm -f "$file"
    state
}

# ---- what is asked ---------------------------------------------------------------------------------

case $verb in
# Argument: the folder of keys, or nothing.
look)
    mkdir -p "$folder" 2>/dev/null && cd "$folder" 2>/dev/null || fail "$folder cannot be made or entered by $(id -un)"
    [ -w . ] || fail "$folder cannot be written by $(id -un)"
    echo "folder $PWD"
    echo "home $HOME"
    echo "user $(id -un)"
    echo "free $(df -Pk . | tail -n 1 | tr -s ' ' | cut -d' ' -f4)"
    command -v sha256sum >/dev/null || fail "sha256sum is missing there; install coreutils"
    if [ -n "$1" ]; then
        # Whoever can write it decides who comes in: zpipe refuses one that others can.
        [ -d "$1" ] || { mkdir -p "$(dirname "$1")" && mkdir -m 700 "$1"; } && chmod go-w "$1" || fail "$folder/$1 cannot be made"
        for each in "$1"/node*.secret; do [ ! -e "$each" ] || echo "secret ${each##*/}"; done
    fi
    ;;
zpipe)
    cd "$folder" || exit 1
    find_zpipe "$1" || { echo "missing yes"; exit 0; }
    echo "zpipe $zpipe"
    if said=$("$zpipe" --version 2>&1); then echo "version ${said##* }"; else echo "broken $(echo "$said" | tail -n 1)"; fi
    ;;
digests)
    cd "$folder" || exit 1
    sha256sum -- "$@" 2>/dev/null # what is not there has none
    exit 0
    ;;
# Of a bundle's files those that are there already become part of the new folder. Arguments: the folder's name, the new one's, files.
reuse)
    cd "$folder" || exit 1
    old=$1 new=$2
    shift 2
    mkdir -p "$new" || exit 1
    for each in "$@"; do
        [ -e "$new/$each" ] && continue
        ln "$old/$each" "$new/$each" 2>/dev/null || cp -p "$old/$each" "$new/$each" || exit 1
    done
    ;;
# The new folder of a bundle takes the old one's place; engines that were built there stay.
swap)
    cd "$folder" || exit 1
    old=$1 new=$2 aside=$3
    rm -rf "$aside" "$new"/.*.partial
    [ -d "$old/trt" ] && [ ! -e "$new/trt" ] && mv "$old/trt" "$new/trt"
    [ ! -e "$old" ] || mv "$old" "$aside" || exit 1
    mv "$new" "$old" || { [ ! -e "$aside" ] || mv "$aside" "$old"; exit 1; }
    rm -rf "$aside" "$(dirname "$old")/.$(basename "$old")."*.part
    ;;
# Three by three: the digest it should have, the name for the time being, the name for good.
place)
    cd "$folder" || exit 1
    sync
    while [ $# -gt 2 ]; do
        sum=$(sha256sum < "$2")
        if [ "${sum%% *}" = "$1" ]; then mv -f -- "$2" "$3" || exit 1; echo "placed $3"; fi
        shift 3
    done
    ;;
# Arguments: a wheel or what else pip takes, and what says whether it is that already.
install)
    cd "$folder" || exit 1
    [ -x .venv/bin/zpipe ] && [ "$(cat .venv/.zpipe-installed 2>/dev/null)" = "$2" ] && exit 0
    command -v python3 >/dev/null || fail "python3 is missing there; sudo apt-get install python3 python3-venv"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$(python3 -V) is there, expected 3.10 or later; --program names a zpipe of another"
    # What the machine has is seen, too: JetPack brings TensorRT.
    [ -x .venv/bin/pip ] || said=$(python3 -m venv --system-site-packages .venv 2>&1) ||
        fail "python3 -m venv: $(echo "$said" | grep . | tail -n 1); sudo apt-get install python3-venv"
    pip() { said=$(.venv/bin/python -m pip --disable-pip-version-check install -q "$@" 2>&1) || fail "pip: $(echo "$said" | grep ERROR | tail -n 1)"; }
    pip --upgrade "$1"
    case $1 in *.whl) pip --no-deps --force-reinstall "$1" ;; esac # pip takes one of the same version for the same
    echo "$2" > .venv/.zpipe-installed
    echo "installed $1"
    ;;
# Arguments: unit, ranks. Standard output of `systemctl` stands in the way of nothing.
units)
    cd "$folder" || exit 1
    scope=user unit=$1
    shift
    command -v systemctl >/dev/null || fail "systemctl is missing there: no systemd; leave out --units"
    export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$(id -u)}"
    said=$(systemctl --user daemon-reload 2>&1) || fail "systemctl --user: $(echo "$said" | tail -n 1)"
    for rank in "$@"; do
        said=$(systemctl --user enable "${unit%@.service}@$rank.service" 2>&1) || fail "systemctl --user: $(echo "$said" | tail -n 1)"
    done
    loginctl enable-linger >/dev/null 2>&1 || echo "linger sudo loginctl enable-linger $(id -un)"
    ;;
# Arguments: zpipe, unit, name and file of the topology, ranks with commas, seconds, arguments of `zpipe node`.
start)
    cd "$folder" 2>/dev/null || fail "no folder $folder there; run \`zpipe push\` first"
    wanted=$1 template=$2 name=$3 topology=$4 ranks=$5 patience=$6
    shift 6
    [ -f "$topology" ] || fail "no $folder/$topology there; run \`zpipe push\` first"
    find_zpipe "$wanted"; found=$?
    mkdir -p fleet 2>/dev/null && exec 9>fleet/lock && flock 9 2>/dev/null
    for each in $(echo "$ranks" | tr , ' '); do
        name_node "$each" "$template" "$name"; manager "$unit"
        echo "rank $rank"
        if [ $found != 0 ] && [ -z "$scope" ]; then echo "state dead"; echo "line no zpipe there${wanted:+ at $wanted}"; continue; fi
        start_node "$topology" "$patience" "$@"
    done
    ;;
# Arguments: unit, name of the topology, ranks with commas, for stop: seconds, for logs: lines.
stop | status | logs)
    template=$1 name=$2 ranks=$3 number=$4
    cd "$folder" 2>/dev/null || folder=''
    for each in $(echo "$ranks" | tr , ' '); do
        name_node "$each" "$template" "$name"; manager "$unit"
        echo "rank $rank"
        if [ -z "$folder" ] && [ -z "$scope" ]; then echo "how process"; echo "state stopped"; continue; fi
        case $verb in
        status) state ;;
        stop) stop_node "$number" ;;
        logs)
            if [ -n "$scope" ]; then journal -u "$unit" -n "$number"; else tail -n "$number" "$log" 2>/dev/null; fi | sed 's/^/line /' ;;
        esac
    done
    ;;
esac
