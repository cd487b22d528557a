# What node.sbatch, allocation.sbatch and array.sbatch share: one sitting of a run inside a batch job.
# shellcheck shell=bash
#
# `sitting COMMAND...` runs COMMAND and ends the job with its exit status. SLURM's warning before the end of the walltime
# (#SBATCH --signal=B:TERM@120) reaches this shell alone. It passes it on, the run ends in order (130; what is finished is
# kept), and the job goes back into the queue, where its next sitting resumes the run: a walltime shorter than the run
# chains until the run is done. A run that ends by itself, well or badly (0, 1, 2, 3), ends the chain; so does scancel.
#
# HALOTILE_SITTINGS   the longest chain (100): a walltime too short for a single tile would chain for ever

sitting() {
    local driver status warned='' command=$1
    if [[ ! ${PREFECT_API_URL-} ]]; then # no server of the site's: none at all, rather than one a job
        set -- "$@" --no-prefect
    fi
    "$@" &
    driver=$!
    trap pass_on TERM
    wait "$driver"
    status=$?
    if [[ $warned ]]; then # it ended the wait above, not the run
        wait "$driver"
        status=$?
        if going_on "$status"; then
            echo "halotile: the walltime ends; queued again to go on (sitting $((${SLURM_RESTART_COUNT:-0} + 1)) is over)"
            scontrol requeue "$SLURM_JOB_ID" # ends this job
        fi
    fi
    exit "$status"
}

# Pass the warning on, once: another one changes nothing. srun would kill its tasks, so that they are told themselves.
pass_on() {
    trap '' TERM
    warned=1
    if [[ $command == srun ]]; then
        scancel --signal=TERM "$SLURM_JOB_ID"
    else
        kill -TERM "$driver"
    fi
}

# Whether an interrupted run is to be queued again: not where the job is being cancelled, which sends a TERM as well.
going_on() {
    [[ $1 == 0 || $1 == 1 || $1 == 2 || $1 == 3 ]] && return 1
    [[ $(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T) == RUNNING ]] || return 1
    ((${SLURM_RESTART_COUNT:-0} + 1 < ${HALOTILE_SITTINGS:-100})) && return
    echo "halotile: sitting ${HALOTILE_SITTINGS:-100} was the last one (HALOTILE_SITTINGS)" >&2
    return 1
}
