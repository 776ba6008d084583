"""What is said about a task before and while it runs: its type, who says so, and its complexity."""

from __future__ import annotations

from typing import NamedTuple

from services.scheduler.core.analysis.classifier import UNKNOWN, Classified, Classifier
from services.scheduler.core.analysis.complexity import Complexity, Facts, complexity
from services.scheduler.core.analysis.starter import STARTER
from services.scheduler.core.book import Book
from services.scheduler.core.course import Task
from services.scheduler.core.model import TaskSpec

#: Texts of a type are learned from its first runs, and from each so manieth later on.
_LEARNED_FIRST = 16
_LEARNED_EACH = 16


class Analysis(NamedTuple):
    """What is known about one task."""

    #: Under which its course is learned.
    task_type: str
    #: "declared", "text" or "skill": who says so.
    source: str
    #: From its text; 1 when it was declared.
    confidence: float
    runner_up: str
    complexity: Complexity


def text_of(spec: TaskSpec) -> str:
    """Return what a task's type is read from."""
    return f"{spec.task_name} {spec.description}".strip()


def analyse(book: Book, task: Task) -> Analysis:
    """Return what is known about a task now."""
    spec = task.spec
    found = Classified(spec.task_type, 1.0) if spec.task_type else classify(book, spec)
    source = "declared" if spec.task_type else "text" if found.task_type else "skill"
    task_type = found.task_type or spec.required_skills[0]
    predictor, declared_ms = book.predictor, spec.estimated_duration_ms
    expected = predictor.typical(task_type, declared_ms, spec.required_skills[0])
    inputs = (task.collaboration.tasks[name].result for name in spec.dependencies)
    facts = Facts(
        expected.mean_ms,
        expected.high_ms,
        predictor.success("", task_type),
        len(spec.required_skills),
        len(spec.resources),
        len(spec.dependencies),
        len(task.dependents),
        len(spec.payload.data) + sum(len(result.data) for result in inputs if result is not None),
        len(text_of(spec)),
    )
    return Analysis(task_type, source, found.confidence, found.runner_up, complexity(facts))


def classify(book: Book, spec: TaskSpec) -> Classified:
    """Return the type that a task's text seems to have; unknown without a text."""
    text = text_of(spec)
    return classifier_of(book).classify(text) if text else UNKNOWN


def learn_text(book: Book, task: Task) -> None:
    """Learn the text of a task whose type was declared; the type's record keeps it."""
    spec = task.spec
    kind = book.predictor.types.get(spec.task_type) if spec.task_type else None
    if kind is None or (kind.count > _LEARNED_FIRST and kind.count % _LEARNED_EACH):
        return
    text = text_of(spec)
    classifier = classifier_of(book)
    if text and classifier.learn(spec.task_type, text):
        kind.texts = classifier.texts(spec.task_type)


def classifier_of(book: Book) -> Classifier:
    """Return the classifier, made from the starting set and the plane's own texts when it is first needed."""
    if book.classifier is None:
        book.classifier = Classifier(STARTER)
        for task_type, kind in book.predictor.types.items():
            for text in kind.texts:
                book.classifier.learn(task_type, text)
    return book.classifier
