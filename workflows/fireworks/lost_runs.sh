#!/usr/bin/env bash
# Make the runs of dead workers ready again.  For cron, every ten minutes:
#
#   */10 * * * * . $HOME/fireworks/worker.env && $HOME/fireworks/lost_runs.sh >> $HOME/fireworks/lost_runs.log 2>&1
#
# A run is lost when it gave no sign of life for RUN_EXPIRATION_SECS (FW_config.yaml); the first argument, in seconds,
# overrules that.  A chunk that was lost by mistake runs twice, and its results are stored once.
set -euo pipefail

launchpad=$(dirname "$FW_CONFIG_FILE")/launchpad.yaml
exec 9> "$(dirname "$FW_CONFIG_FILE")/.lost_runs.lock"
flock -n 9 || exit 0

date --utc +%Y-%m-%dT%H:%M:%SZ
lpad -l "$launchpad" detect_lostruns ${1:+--time "$1"} --rerun --refresh
