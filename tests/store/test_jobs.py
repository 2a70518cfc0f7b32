"""Jobs: once each, leased, fenced, tried again, quarantined."""

from __future__ import annotations

import threading

import pytest

from slideway.core.errors import ConflictError, LeaseLostError, UnknownRecordError
from slideway.store.jobs import JobState, wait_ms
from slideway.store.schema import JOBS

SLIDE, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def slides(store):
    with store.transaction("north") as work:
        work.slides.accept(SLIDE)
        work.slides.accept(OTHER)
    return store


def test_a_step_with_a_model_is_one_job_however_often_it_is_asked_for(slides):
    with slides.transaction("north") as work:
        first = work.jobs.enqueue(SLIDE, "encode", model="m1", payload={"a": 1})
    with slides.transaction("north") as work:
        assert work.jobs.enqueue(SLIDE, "encode", model="m1", payload={"a": 2}) == first
        assert work.jobs.enqueue(SLIDE, "encode", model="m2") != first
        assert work.jobs.counts()[JobState.WAITING] == 2


def test_a_job_for_a_slide_that_is_not_there_is_refused(slides):
    with pytest.raises(ConflictError, match="rules"), slides.transaction("north") as work:
        work.jobs.enqueue("c" * 64, "encode")


def test_urgent_goes_first_then_priority_then_age(slides, clock):
    with slides.transaction("north") as work:
        work.jobs.enqueue(SLIDE, "old")
        clock.move(1)
        work.jobs.enqueue(SLIDE, "young")
        work.jobs.enqueue(SLIDE, "pressing", priority=1)
        work.jobs.enqueue(SLIDE, "urgent", is_urgent=True)
        taken = [work.jobs.lease("w", seconds=60).step for _ in range(4)]
        assert taken == ["urgent", "pressing", "old", "young"]
        assert work.jobs.lease("w", seconds=60) is None


def test_only_the_steps_that_a_worker_knows_are_leased(slides):
    with slides.transaction("north") as work:
        work.jobs.enqueue(SLIDE, "encode")
        assert work.jobs.lease("w", seconds=60, steps=["render"]) is None
        assert work.jobs.lease("w", seconds=60, steps=["render", "encode"]).step == "encode"


def test_a_late_worker_cannot_finish_what_went_to_another(slides, clock):
    with slides.transaction("north") as work:
        work.jobs.enqueue(SLIDE, "encode")
        late = work.jobs.lease("slow", seconds=10)
    clock.move(11)
    with slides.transaction("north") as work:
        new = work.jobs.lease("fast", seconds=10)
        assert (new.job_id, new.fence) == (late.job_id, late.fence + 1)
    for late_word in ("complete", "heartbeat", "fail", "give_back"):
        arguments = {"heartbeat": {"seconds": 5}, "fail": {"reason": "x"}}.get(late_word, {})
        with pytest.raises(LeaseLostError), slides.transaction("north") as work:
            work.slides.accept(sha := "c" * 64)
            getattr(work.jobs, late_word)(late, **arguments)
    with slides.transaction("north") as work:
        assert work.slides.find(sha) is None  # what the late worker wrote went with its transaction
        assert work.jobs.complete(new, result={"tiles": 3}).result == {"tiles": 3}


def test_a_heartbeat_holds_a_job(slides, clock):
    with slides.transaction("north") as work:
        work.jobs.enqueue(SLIDE, "encode")
        job = work.jobs.lease("w", seconds=10)
    clock.move(9)
    with slides.transaction("north") as work:
        work.jobs.heartbeat(job, seconds=10)
    clock.move(9)
    with slides.transaction("north") as work:
        assert work.jobs.lease("other", seconds=10) is None
        assert work.jobs.complete(job).state is JobState.DONE


def test_a_job_finished_twice_is_finished_once_and_not_otherwise(slides):
    with slides.transaction("north") as work:
        work.jobs.enqueue(SLIDE, "encode")
        job = work.jobs.lease("w", seconds=10)
        done = work.jobs.complete(job, result={"a": 1})
        assert work.jobs.complete(job, result={"a": 1}) == done
    with pytest.raises(ConflictError), slides.transaction("north") as work:
        work.jobs.complete(job, result={"a": 2})


def test_failures_wait_longer_each_time_and_end_in_quarantine_with_their_reason(slides, clock):
    with slides.transaction("north") as work:
        work.jobs.enqueue(SLIDE, "encode", attempts_allowed=3)
    waits = []
    for attempt in range(1, 4):
        with slides.transaction("north") as work:
            job = work.jobs.lease("w", seconds=10)
            assert job.attempts == attempt
            failed = work.jobs.fail(job, reason="slide-broken")
            waits.append(failed.not_before_ms - clock.now_ms)
            if failed.state is JobState.WAITING:
                assert work.jobs.lease("w", seconds=10) is None
        clock.move(waits[-1] / 1000)
    assert failed.state is JobState.QUARANTINED and failed.reason == "slide-broken"
    assert waits[1] > waits[0] >= 5_000
    with slides.transaction("north") as work:
        assert work.jobs.lease("w", seconds=10) is None
        assert [job.slide_sha256 for job in work.jobs.find_all(state=JobState.QUARANTINED)] == [SLIDE]


def test_a_failure_that_would_repeat_itself_is_quarantined_at_once(slides):
    with slides.transaction("north") as work:
        work.jobs.enqueue(SLIDE, "encode")
        job = work.jobs.lease("w", seconds=10)
        assert work.jobs.fail(job, reason="slide-broken", can_retry=False).state is JobState.QUARANTINED


def test_a_slide_that_kills_every_worker_is_quarantined_and_named(slides, clock):
    with slides.transaction("north") as work:
        work.jobs.enqueue(SLIDE, "encode", attempts_allowed=2)
    for _ in range(2):
        with slides.transaction("north") as work:
            job = work.jobs.lease("w", seconds=10)
        clock.move(11)
    with slides.transaction("north") as work:
        assert work.jobs.lease("w", seconds=10) is None
        assert [spent.slide_sha256 for spent in work.jobs.quarantine_spent()] == [SLIDE]
        assert work.jobs.quarantine_spent() == []
    with pytest.raises(LeaseLostError), slides.transaction("north") as work:
        work.jobs.complete(job)


def test_a_job_given_back_costs_no_attempt(slides):
    with slides.transaction("north") as work:
        work.jobs.enqueue(SLIDE, "encode", attempts_allowed=1)
        assert work.jobs.give_back(work.jobs.lease("w", seconds=10)).attempts == 0
        assert work.jobs.lease("w", seconds=10) is not None


def test_a_restarted_node_frees_what_its_dead_workers_held(slides):
    with slides.transaction("north") as work:
        work.jobs.enqueue(SLIDE, "encode")
        dead = work.jobs.lease("w", seconds=3600)
    with slides.transaction("north") as work:
        assert work.jobs.free_all() == 1
        assert work.jobs.lease("w2", seconds=10).fence == dead.fence + 1


def test_a_clock_that_was_set_back_makes_nothing_wait(slides, clock):
    with slides.transaction("north") as work:
        work.jobs.enqueue(SLIDE, "encode")
        work.jobs.enqueue(OTHER, "encode")
        work.jobs.fail(work.jobs.lease("w", seconds=10), reason="x")
        work.jobs.lease("w", seconds=10)
    clock.move(-86_400)
    with slides.transaction("north") as work:
        assert {work.jobs.lease("w", seconds=10).slide_sha256 for _ in range(2)} == {SLIDE, OTHER}


def test_workers_of_two_threads_never_hold_the_same_job(slides):
    with slides.transaction("north") as work:
        for number in range(12):
            work.jobs.enqueue(SLIDE, f"step{number}")
    taken: list[str] = []

    def run() -> None:
        while True:
            with slides.transaction("north") as work:
                job = work.jobs.lease(threading.current_thread().name, seconds=60)
                if job is None:
                    return
                work.jobs.complete(job)
                taken.append(job.step)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(f"step{number}" for number in range(12))


def test_on_postgresql_a_worker_does_not_wait_for_another(slides):
    if slides.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has one writer by design")
    with slides.transaction("north") as work:
        work.jobs.enqueue(SLIDE, "one")
        work.jobs.enqueue(SLIDE, "two")
    with slides.transaction("north") as first, slides.transaction("north") as second:
        assert {first.jobs.lease("a", seconds=9).step, second.jobs.lease("b", seconds=9).step} == {"one", "two"}


def test_a_worker_of_all_tenants_leases_from_any_and_finishes_as_that_tenant(slides):
    with slides.transaction("south") as work:
        work.slides.accept(OTHER)
        work.jobs.enqueue(OTHER, "encode", is_urgent=True)
    with slides.transaction("north") as work:
        work.jobs.enqueue(SLIDE, "encode")
    with slides.transaction_of_all() as everything:
        job = everything.jobs.lease("w", seconds=10)
        assert job.tenant == "south"
        with pytest.raises(ValueError, match="one tenant"):
            everything.jobs.complete(job)
        assert everything.of(job.tenant).jobs.complete(job).state is JobState.DONE
        assert everything.jobs.counts()[JobState.WAITING] == 1
    with pytest.raises(UnknownRecordError), slides.transaction("north") as work:
        work.jobs.complete(job)


def fill_queues(store, clock, **counts):
    """Jobs of tenants, one tenant after the other: the last one's are the youngest."""
    for tenant, count in counts.items():
        store.add_tenant(tenant)
        with store.transaction(tenant) as work:
            work.slides.accept(SLIDE)
            for number in range(count):
                work.jobs.enqueue(SLIDE, f"step{number}")
        clock.move(1)


def lease_of_all(store, count, *, finish):
    taken = []
    for _ in range(count):
        with store.transaction_of_all() as everything:
            job = everything.jobs.lease("w", seconds=60)
            taken.append(job.tenant)
            if finish:
                everything.of(job.tenant).jobs.complete(job)
    return taken


def test_a_tenant_with_many_slides_does_not_hold_up_another(store, clock):
    fill_queues(store, clock, north=100, south=4)
    taken = lease_of_all(store, 60, finish=True)
    assert taken.count("south") == 4  # by chance among equals: that it fails is less likely than one in 10 ** 12


def test_the_turn_is_whose_workers_have_least_in_hand(store, clock):
    fill_queues(store, clock, north=20, south=3, east=3)
    taken = lease_of_all(store, 9, finish=False)
    assert {tenant: taken.count(tenant) for tenant in ("north", "south", "east")} == {"north": 3, "south": 3, "east": 3}
    assert lease_of_all(store, 3, finish=False) == ["north"] * 3


def test_urgent_and_priority_go_before_any_turn(store, clock):
    fill_queues(store, clock, north=5, south=0)
    with store.transaction("south") as work:
        work.jobs.enqueue(SLIDE, "urgent", is_urgent=True, priority=900)
        work.jobs.enqueue(SLIDE, "later", priority=200)
    with store.transaction("north") as work:
        work.jobs.enqueue(SLIDE, "pressing", priority=1)
    assert lease_of_all(store, 8, finish=False) == ["south", *["north"] * 6, "south"]


def test_within_a_tenant_the_oldest_goes_first_also_in_the_transaction_of_all(store, clock):
    store.add_tenant("north")
    with store.transaction("north") as work:
        work.slides.accept(SLIDE)
    for step in ("first", "second", "third"):
        with store.transaction("north") as work:
            work.jobs.enqueue(SLIDE, step)
        clock.move(1)
    for step in ("first", "second", "third"):
        with store.transaction_of_all() as everything:
            assert everything.jobs.lease("w", seconds=60).step == step


def test_on_postgresql_a_worker_of_all_takes_what_others_leave_in_the_same_moment(store, clock):
    if store.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has one writer by design")
    fill_queues(store, clock, north=1, south=1)
    with store.transaction_of_all() as first, store.transaction_of_all() as second, store.transaction_of_all() as third:
        taken = {opened.jobs.lease("w", seconds=9).tenant for opened in (first, second)}
        assert taken == {"north", "south"}
        assert third.jobs.lease("w", seconds=9) is None  # both are locked: it does not wait


def test_waits_double_up_to_an_hour_and_are_spread():
    assert all(3_600_000 <= wait_ms(attempts, "k") <= 4_500_000 for attempts in (11, 40, 1000))
    assert len({wait_ms(3, f"node{number}") for number in range(50)}) > 25


def count_steps(store):
    """Steps of SQLite's machine that one choice among all tenants' jobs takes, in hundreds."""
    steps = []
    with store.transaction_of_all() as everything:
        raw = everything.jobs._connection.connection.driver_connection
        raw.set_progress_handler(lambda: steps.append(1), 100)
        try:
            assert everything.jobs._take_turns([JOBS.c.attempts < JOBS.c.attempts_allowed])
        finally:
            raw.set_progress_handler(None, 0)
    return len(steps)


def test_whose_turn_it_is_costs_the_same_however_many_jobs_wait(store, clock):
    if store.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL counts no steps")
    fill_queues(store, clock, north=10, south=10)
    few = count_steps(store)
    fill_queues(store, clock, north=1000)
    assert count_steps(store) <= few + 1
