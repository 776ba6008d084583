"""Every metric of the scheduler."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from services.common.metrics import SIZE_BUCKETS, Metrics
from services.scheduler.core.book import Book
from services.scheduler.core.monitoring.alerts import AlertKind
from services.scheduler.core.monitoring.observing import standing_counts

#: Seconds, from what the plane itself costs to a working day.
STAGE_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 10_000.0)

#: Gauges that are read when they are asked for: name, help, value.
_AT_SCRAPE: tuple[tuple[str, str, Callable[[Book], float]], ...] = (
    (
        "open_collaborations",
        "Collaborations that have not ended.",
        lambda book: book.open_collaboration_count,
    ),
    ("open_tasks", "Tasks that have not ended.", lambda book: book.open_task_count),
    ("waiting_tasks", "Ready tasks that wait for an agent.", lambda book: book.index.waiting_count),
    ("retained_tasks", "Tasks of ended collaborations still kept.", lambda book: book.retained_task_count),
    ("work_streams", "Agent instances that are linked.", lambda book: len(book.streams)),
    (
        "tasks_held_back",
        "Ready tasks that wait for a better agent while another one is free.",
        lambda book: len(book.foresight.holds),
    ),
    (
        "slots_kept",
        "Slots that are kept for urgent work while what makes room for it saves.",
        lambda book: sum(len(room.places) for room in book.rooms.values()),
    ),
    (
        "prediction_coverage",
        "Share of the latest runs inside their 80 % interval; 0.8 is calibrated.",
        lambda book: book.predictor.coverage(),
    ),
)


def _standing(kind: AlertKind, book: Book) -> float:
    return standing_counts(book)[kind.name]


class SchedulerMetrics:
    """Made once per process."""

    def __init__(self, metrics: Metrics) -> None:
        self.leading = metrics.gauge("leading", "1 while this replica leads.")
        self.epoch = metrics.gauge("epoch", "The newest leadership of this replica.")
        self.takeover_seconds = metrics.histogram(
            "takeover_seconds", "From winning the election to the first batch served."
        )
        self.batch_events = metrics.histogram(
            "batch_events", "Events in one batch.", buckets=(*SIZE_BUCKETS, 2_048)
        )
        self.step_seconds = metrics.histogram("step_seconds", "Deciding about one batch, placement included.")
        self.commit_seconds = metrics.histogram(
            "commit_seconds", "From a batch's first write to the last answer of store and audit outbox."
        )
        self.commit_writes = metrics.histogram(
            "commit_writes", "Values written by one commit.", buckets=(*SIZE_BUCKETS, 2_048, 4_096)
        )
        self.commit_failures = metrics.counter(
            "commit_failures", "Commits that were tried again, by reason.", ("reason",)
        )
        self.operations = metrics.counter(
            "operations", "What was done or refused, as in the audit log.", ("operation", "outcome")
        )
        #: What the gauges below tell of; None while this replica does not lead.
        self._book: Book | None = None
        self._queue_events: Callable[[], int] = int
        self._watchers: Callable[[], int] = int
        for name, help_text, read in _AT_SCRAPE:
            metrics.gauge(name, help_text).set_function(self._reading(read))
        waiting = metrics.gauge("queue_events", "Events that wait for the next batch.")
        waiting.set_function(self._count_queue)
        watchers = metrics.gauge("watchers", "Watch streams.")
        watchers.set_function(self._count_watchers)
        self.stage_seconds = metrics.tally(
            "task_stage_seconds",
            "Time of tasks in each stage: ready (submitted to ready), assigned (ready to assigned), started "
            "(assigned to started), done (started to done), and collaboration (submitted to ended).",
            STAGE_BUCKETS,
            ("stage",),
        )
        self.prediction_ratio = metrics.tally(
            "prediction_ratio",
            "Actual over predicted duration of every run that succeeded.",
            (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0),
        )
        self.predictions = metrics.counter(
            "predictions", "Runs that succeeded, by whether they fell into their 80 % interval.", ("inside",)
        )
        alerts = metrics.gauge("alerts", "Alerts that stand, by kind.", ("kind",))
        for kind in AlertKind:
            counted = self._reading(partial(_standing, kind))
            alerts.labels(kind.name).set_function(counted)
        self.deadlines = metrics.counter(
            "deadline_warnings",
            "Deadlines predicted to be missed: warned, and what came of it: recovered (predicted to be met "
            "after all), missed, over (failed or cancelled for another reason).",
            ("outcome",),
        )
        self.plans = metrics.counter(
            "standing_plans",
            "Searches for a better standing plan: asked, and what came of it: adopted, refused (not better), "
            "late (nothing of it was left), failed.",
            ("outcome",),
        )
        self.plan_gain_seconds = metrics.histogram(
            "standing_plan_gain_seconds",
            "By how much earlier everything is predicted to end under a plan that was adopted.",
            buckets=STAGE_BUCKETS,
        )
        self.watch_gaps = metrics.counter("watch_gaps", "Times that a slow watcher missed events.")

    def follow(self, book: Book, queue_events: Callable[[], int], watchers: Callable[[], int]) -> None:
        """Let the gauges tell of a leadership from now on: they are read when somebody asks for them."""
        self._book, self._queue_events, self._watchers = book, queue_events, watchers

    def unfollow(self) -> None:
        """Let the gauges tell of nothing: the leadership is over."""
        self._book, self._queue_events, self._watchers = None, int, int

    def _count_queue(self) -> float:
        return self._queue_events()

    def _count_watchers(self) -> float:
        return self._watchers()

    def _reading(self, read: Callable[[Book], float]) -> Callable[[], float]:
        return lambda: 0.0 if self._book is None else read(self._book)

    def take(self, book: Book) -> None:
        """Take over what the core noted since the last time."""
        observed = book.observed
        if observed.stages:
            for stage, milliseconds in observed.stages:
                self.stage_seconds.observe(milliseconds / 1_000, stage)
            observed.stages.clear()
        if observed.misses:
            inside = 0
            for miss in observed.misses:
                self.prediction_ratio.observe(miss.ratio)
                inside += miss.inside
            self.predictions.labels("yes").inc(inside)
            self.predictions.labels("no").inc(len(observed.misses) - inside)
            observed.misses.clear()
        outcomes = book.foresight.plan.outcomes
        while outcomes:
            outcome, gain_ms = outcomes.popleft()
            self.plans.labels(outcome).inc()
            if outcome == "adopted":
                self.plan_gain_seconds.observe(gain_ms / 1_000)
        while observed.deadlines:
            self.deadlines.labels(observed.deadlines.popleft()).inc()
