"""Pretrain a backbone on shards, with DeepSpeed, to a published folder.

    python -m foundation.pretrain recipes/pretrain/demo_mae.yaml
    torchrun --standalone --nproc-per-node 2 -m foundation.pretrain RECIPE [section.field=value ...]

Started again, it goes on from the last whole checkpoint; finished, it says so. SIGTERM, SIGUSR1 and
Ctrl-C save first, and leave with code 75.
"""

from foundation.recipe import PretrainConfig
from foundation.running.finish import publish
from foundation.running.plan import Plan, announce, corpus_of, make_plan
from foundation.running.ranks import (
    Ranks,
    from_rank_zero,
    join_ranks,
    leave_ranks,
    losing_a_rank_is_an_error,
    run_on_ranks,
)
from foundation.running.stopping import StopRequest
from foundation.running.work import Job, Pretraining
from foundation.training import open_log, open_writer, train
from foundation.watching.heartbeat import Heartbeat


def main(config: PretrainConfig) -> None:
    """Pretrain, on this rank of however many there are."""
    with StopRequest().listen() as request:
        ranks = join_ranks(timeout_s=config.train.timeout_s)
        try:
            with losing_a_rank_is_an_error(config.folder):
                plan = from_rank_zero(lambda: make_plan(config, ranks=ranks))
                if not plan.state.finished:
                    with Heartbeat(
                        config.folder,
                        rank=ranks.rank,
                        world_size=ranks.world_size,
                        step=plan.state.step,
                        stall_s=config.safety.stall_s,
                    ) as heartbeat:
                        pretrain(
                            config, plan=plan, ranks=ranks, request=request, heartbeat=heartbeat
                        )
        finally:
            leave_ranks()


def pretrain(
    config: PretrainConfig,
    *,
    plan: Plan,
    ranks: Ranks,
    request: StopRequest,
    heartbeat: Heartbeat,
) -> None:
    """Build, train to the last step, publish."""
    work = Pretraining(config, plan)
    method = work.first_method(plan.state)
    from_rank_zero(lambda: announce(config, plan=plan, ranks=ranks, method=method))
    keeps = ranks.rank == 0
    job = Job(
        work=work,
        config=config,
        folder=config.folder,
        portions=plan.portions,
        shards_digest=plan.shards_digest,
        crops=config.plan,
        tokens_per_scan=config.tokens_per_scan,
        ranks=ranks,
        corpus=corpus_of(config),
        max_damaged=config.reading.max_damaged,
        timeout_s=config.reading.timeout_s,
        request=request,
        heartbeat=heartbeat,
        log=open_log(config, folder=config.folder, start=plan.state.step) if keeps else None,
        writer=open_writer(config, folder=config.folder) if keeps else None,
    )
    method = train(job, method=method, state=plan.state)
    from_rank_zero(lambda: publish(work, job=job, method=method))


if __name__ == "__main__":
    assert __doc__
    run_on_ranks(main, PretrainConfig, doc=__doc__)
