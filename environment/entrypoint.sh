#!/usr/bin/env bash
# Entry point of the container: the environment of env.sh, then the command.
# no `set -eu`: the scripts of CANN that env.sh sources do not expect it
# shellcheck source=environment/env.sh
. /opt/telechat-kit/environment/env.sh
exec "$@"
