#!/usr/bin/env bash
# A node of docker/compose.yaml. Everything is the user's own: sshd listens on port 2222 and admits this user, by key alone.
#   node.sh keys             make the keys that the nodes share, where there are none
#   node.sh serve            sshd, in the foreground
#   node.sh run ARGUMENTS    sshd in the background, then ./launch.sh ARGUMENTS
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
port=2222

make_keys() {
    [[ ! -f ~/.ssh/config ]] || return 0  # written last: an interrupted start makes them anew
    rm -f ~/.ssh/user_key* ~/.ssh/host_key*
    ssh-keygen -q -t ed25519 -N "" -f ~/.ssh/user_key
    ssh-keygen -q -t ed25519 -N "" -f ~/.ssh/host_key
    cp ~/.ssh/user_key.pub ~/.ssh/authorized_keys
    echo "kd_node $(cut -d ' ' -f 1,2 ~/.ssh/host_key.pub)" > ~/.ssh/known_hosts
    chmod 600 ~/.ssh/*
    printf '%s\n' "Port $port" "IdentityFile ~/.ssh/user_key" "HostKeyAlias kd_node" "StrictHostKeyChecking yes" \
        > ~/.ssh/config.partial
    mv ~/.ssh/config.partial ~/.ssh/config
}

sshd() {
    /usr/sbin/sshd "$@" -f /dev/null -p "$port" -h ~/.ssh/host_key -o PidFile=none -o UsePAM=no -o PasswordAuthentication=no \
        -o KbdInteractiveAuthentication=no -o AuthorizedKeysFile=.ssh/authorized_keys -o "AllowUsers=$(id -un)"
}

case ${1:-} in
    keys) make_keys ;;
    serve) sshd -D -e ;;
    run) shift; sshd; exec ./launch.sh "$@" ;;
    *) sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
