"""Human work: projects with the rules by which people get items, items, and items in somebody's hands.

An item goes OPEN -> IN_REVIEW -> ACCEPTED, or straight to ACCEPTED where nobody needs to look; a reviewer may send
answers back, which opens it again, and an annotator may dispute that, which gives it to another reviewer.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from libs.common.domain import DomainError, Resource
from services.dataset.domain.consensus import agreement, consensus, is_right
from services.dataset.domain.datasets import sees_all
from services.dataset.domain.forms import Answer, FieldKind, Form, is_number

# What a page may fetch ahead.
MAX_HELD = 5
# Fewer known answers say nothing about somebody.
GOLD_LEAST = 5
DEFAULT_LEASE = 3600
# How long somebody has to answer anew what was returned; it is not in his hands, so he may not see it for a while.
RETURN_LEASE = timedelta(days=7)
# Of proposals that are accepted unseen, unless somebody wants another one.
WANTED_PRECISION = 0.95
# A reviewer decides while the page is open.
REVIEW_LEASE = timedelta(hours=1)
# Ten thousand choices of a share.
_TURNS = 10_000


class Review(enum.IntEnum):
    """Which items a second person looks at; numbers as in human_work.proto."""

    UNSPECIFIED = 0
    NONE = 1
    DISAGREEMENTS = 2
    ALL = 3


class ItemState(enum.StrEnum):
    """States of an item, as `WorkItem.State` names them."""

    OPEN = "OPEN"
    IN_REVIEW = "IN_REVIEW"
    DISPUTED = "DISPUTED"
    ACCEPTED = "ACCEPTED"


class AssignmentState(enum.StrEnum):
    """States of an assignment, as `WorkAssignment.State` names them."""

    HELD = "HELD"
    SUBMITTED = "SUBMITTED"
    RETURNED = "RETURNED"
    RELEASED = "RELEASED"
    EXPIRED = "EXPIRED"


# Those that somebody still has to do something about, until their lease runs out.
PENDING = (AssignmentState.HELD, AssignmentState.RETURNED)


@dataclass(kw_only=True)
class WorkTemplate(Resource):
    """A form that projects are made from."""

    display_name: str = ""
    description: str = ""
    form: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(kw_only=True)
class WorkProject(Resource):
    """Items that people work on. See `WorkProject` of human_work.proto for the attributes.

    Attributes:
        form: as `Form.to_json` gives it.
        item_count: items ever added; the position of the next one.
    """

    display_name: str = ""
    description: str = ""
    source: str = ""
    form: dict[str, Any] = field(default_factory=dict[str, Any])
    overlap: int = 1
    annotators: list[str] = field(default_factory=list[str])
    reviewers: list[str] = field(default_factory=list[str])
    managers: list[str] = field(default_factory=list[str])
    review: int = Review.DISAGREEMENTS
    agreement_threshold: float = 1.0
    lease_seconds: int = DEFAULT_LEASE
    gold_share: float = 0.0
    gold_min_accuracy: float = 0.0
    price_micros: int = 0
    currency: str = ""
    paused: bool = False
    item_count: int = 0

    def parsed_form(self) -> Form:
        """The form as an object."""
        return Form.from_json(self.form)

    def manages(self, subject: str, role: int) -> bool:
        """Whether somebody manages it."""
        return subject == self.creator or subject in self.managers or sees_all(subject, role)

    def reviews(self, subject: str, role: int) -> bool:
        """Whether somebody may review and read all answers."""
        return subject in self.reviewers or self.manages(subject, role)

    def annotates(self, subject: str) -> bool:
        """Whether somebody may get items."""
        return not self.annotators or subject in self.annotators

    def require_part(self, subject: str, role: int) -> None:
        """Raises NOT_FOUND for somebody who has no part in it."""
        if not (self.annotates(subject) or self.reviews(subject, role)):
            raise DomainError("NOT_FOUND", f"{self.name} does not exist.", name=self.name)

    def require_manager(self, subject: str, role: int) -> None:
        """Raises ROLE_MISSING, or NOT_FOUND for somebody who has no part in it."""
        self.require_part(subject, role)
        if not self.manages(subject, role):
            self._refuse("managers", subject)

    def require_reviewer(self, subject: str, role: int) -> None:
        """Raises ROLE_MISSING, or NOT_FOUND for somebody who has no part in it."""
        self.require_part(subject, role)
        if not self.reviews(subject, role):
            self._refuse("reviewers", subject)

    def require_annotator(self, subject: str, role: int) -> None:
        """Raises ROLE_MISSING, or NOT_FOUND for somebody who has no part in it; STATE_CONFLICT while it is paused."""
        self.require_part(subject, role)
        if not self.annotates(subject):
            self._refuse("annotators", subject)
        if self.paused:
            message = f"{self.name} is paused; its managers can resume it."
            raise DomainError("STATE_CONFLICT", message, name=self.name, state="paused", wanted="running")

    def _refuse(self, needed: str, subject: str) -> None:
        message = f"{subject} is not among the {needed} of {self.name}."
        raise DomainError("ROLE_MISSING", message, required_role=needed)

    def require_trusted(self, subject: str, known: int, right: int) -> None:
        """Raises STATE_CONFLICT for somebody who was wrong too often where the answer is known."""
        if known < GOLD_LEAST or right >= self.gold_min_accuracy * known:
            return
        message = (
            f"{subject} had {right} of {known} known answers right, {self.gold_min_accuracy:.0%} are asked for: "
            f"the managers of {self.name} decide how it goes on."
        )
        raise DomainError("STATE_CONFLICT", message, name=self.name, state="stopped", wanted="trusted")

    def gives_gold(self, subject: str, taken: int) -> bool:
        """Whether somebody's next item, after so many, is one whose answer is known: a share that nobody can foresee
        from outside, and the same when asked again."""
        drawn = hashlib.sha256(f"{self.uid}/{subject}/{taken}".encode()).digest()
        return int.from_bytes(drawn[:4]) % _TURNS < self.gold_share * _TURNS

    def require_sound(self) -> None:
        """Raises INVALID_FIELD for rules that nobody could follow."""
        self.parsed_form().require_sound("work_project.form")
        if self.annotators and self.overlap > len(self.annotators):
            message = (
                f"overlap: {self.overlap} answers to an item need as many annotators; there are {len(self.annotators)}"
            )
            raise DomainError("INVALID_FIELD", message, field="work_project.overlap")
        if self.price_micros and not self.currency:
            raise DomainError("INVALID_FIELD", "currency: is missing for the price", field="work_project.currency")


@dataclass(kw_only=True)
class WorkItem(Resource):
    """One thing to be looked at. See `WorkItem` of human_work.proto for the other attributes.

    Attributes:
        position: in the order in which they were added.
        holders: who answered it or holds it.
        refusers: who gave it back, and does not get it again.
        lease_expire_time: when the first of those who hold it loses it; None: nobody holds it.
        submitted: answers that are there.
        reviewer: who reviews it, until `review_expire_time`.
        excluded_reviewer: whose decision is disputed.
    """

    subject: str = ""
    payload: dict[str, Any] = field(default_factory=dict[str, Any])
    gold: Answer | None = None
    proposal: Answer | None = None
    priority: int = 0
    position: int = 0
    holders: list[str] = field(default_factory=list[str])
    refusers: list[str] = field(default_factory=list[str])
    lease_expire_time: datetime | None = None
    submitted: int = 0
    agreement: float | None = None
    answer: Answer | None = None
    reviewer: str = ""
    review_expire_time: datetime | None = None
    excluded_reviewer: str = ""

    def has_place_for(self, subject: str, overlap: int) -> bool:
        """Whether somebody may get it now. What has a known answer may be given to everybody."""
        free = self.gold is not None or len(self.holders) < overlap
        return self.state == ItemState.OPEN and free and subject not in (*self.holders, *self.refusers)

    def renew(self, assignments: Sequence[WorkAssignment]) -> None:
        """Makes holders and leases those of its assignments, after one of them has changed."""
        self.holders = [a.annotator for a in assignments if a.state in (*PENDING, AssignmentState.SUBMITTED)]
        self.refusers = [a.annotator for a in assignments if a.state == AssignmentState.RELEASED]
        leases = [a.lease_expire_time for a in assignments if a.state in PENDING and a.lease_expire_time is not None]
        self.lease_expire_time = min(leases, default=None)
        self.submitted = sum(a.state == AssignmentState.SUBMITTED for a in assignments)

    def settle(self, project: WorkProject, assignments: Sequence[WorkAssignment]) -> None:
        """Decides, after an answer has come, whether the item is done, goes to a reviewer, or waits for more."""
        self.renew(assignments)
        # What came late to a dispute is there for the reviewer, but decides nothing.
        if self.gold is not None or self.submitted < project.overlap or self.state != ItemState.OPEN:
            return
        form = project.parsed_form()
        answers = given(assignments)
        self.agreement = round(agreement(form, answers), 4)
        agreed = self.agreement >= project.agreement_threshold
        if project.review == Review.NONE or (project.review == Review.DISAGREEMENTS and agreed):
            self.accept(consensus(form, answers))
        else:
            self.state = ItemState.IN_REVIEW

    def accept_proposal(self, form: Form, least_score: float) -> None:
        """Makes a proposal the final answer that nobody needs to look at: boxes only, each with this score at least.
        An image on which nothing was found is looked at: nobody knows what was missed."""
        if self.gold is not None or self.proposal is None or any(f.kind is not FieldKind.BOXES for f in form.fields):
            return
        boxes = [box for given in self.proposal.values() for box in given]
        scores = [box.get("score") for box in boxes]
        if boxes and all(is_number(score) and score >= least_score for score in scores):
            self.accept(self.proposal)

    def accept(self, answer: Answer) -> None:
        """Makes an answer the final one."""
        self.answer = answer
        self.state = ItemState.ACCEPTED
        self.reviewer, self.review_expire_time = "", None

    def require_reviewed_by(self, subject: str, now: datetime) -> None:
        """Raises STATE_CONFLICT for somebody who does not hold the review."""
        held = self.reviewer == subject and self.review_expire_time is not None and now < self.review_expire_time
        if not held or self.state not in (ItemState.IN_REVIEW, ItemState.DISPUTED):
            message = f"{self.name} is not in review by {subject}: take it with TakeReview."
            raise DomainError("STATE_CONFLICT", message, name=self.name, state=self.state, wanted="IN_REVIEW")

    def open_again(self, reviewer: str, assignments: Sequence[WorkAssignment]) -> None:
        """Waits for the answers that a reviewer sent back."""
        self.renew(assignments)
        self.state = ItemState.OPEN
        self.agreement = None
        self.reviewer, self.review_expire_time, self.excluded_reviewer = "", None, reviewer

    def dispute(self, assignments: Sequence[WorkAssignment]) -> None:
        """Gives it to another reviewer than the one who sent an answer back. Raises STATE_CONFLICT once it is done."""
        if self.state == ItemState.ACCEPTED:
            message = f"{self.name} is accepted: what was decided about it is final."
            raise DomainError("STATE_CONFLICT", message, name=self.name, state=self.state, wanted="OPEN")
        self.renew(assignments)
        self.state = ItemState.DISPUTED


@dataclass(kw_only=True)
class WorkAssignment(Resource):
    """An item in somebody's hands. See `WorkAssignment` of human_work.proto for the attributes.

    Attributes:
        project: name of the project.
        right: whether the answer is the known one; None where none is known.
    """

    project: str = ""
    annotator: str = ""
    lease_expire_time: datetime | None = None
    answer: Answer | None = None
    active_seconds: float = 0.0
    submit_time: datetime | None = None
    reason: str = ""
    right: bool | None = None

    def require_holder(self, subject: str) -> None:
        """Raises NOT_FOUND for anybody but the one who holds it: nobody learns what others do."""
        if subject != self.annotator:
            raise DomainError("NOT_FOUND", f"{self.name} does not exist.", name=self.name)

    def require_pending(self) -> None:
        """Raises STATE_CONFLICT when there is nothing to be done about it any more."""
        if self.state in PENDING:
            return
        why = {
            AssignmentState.EXPIRED: "was left behind for too long: somebody else has got the item.",
            AssignmentState.SUBMITTED: "was submitted already.",
            AssignmentState.RELEASED: "was given back.",
        }
        message = f"{self.name} {why[AssignmentState(self.state)]}"
        raise DomainError("STATE_CONFLICT", message, name=self.name, state=self.state, wanted="HELD")

    def hold(self, until: datetime) -> None:
        """Begins the lease anew."""
        self.lease_expire_time = max(until, self.lease_expire_time or until)

    def is_overdue(self, now: datetime) -> bool:
        """Whether the item may go to somebody else."""
        return self.state in PENDING and self.lease_expire_time is not None and self.lease_expire_time <= now

    def expire(self) -> None:
        """The item was left behind."""
        self.state = AssignmentState.EXPIRED
        self.lease_expire_time = None

    def submit(self, form: Form, item: WorkItem, answer: Answer, active_seconds: float, now: datetime) -> None:
        """Takes the answer. Raises INVALID_FIELD for one that is none to the form."""
        self.require_pending()
        form.require_answered(answer)
        self.answer, self.active_seconds, self.submit_time = answer, active_seconds, now
        self.right = is_right(form, answer, item.gold) if item.gold is not None else None
        self.state, self.lease_expire_time = AssignmentState.SUBMITTED, None

    def release(self, reason: str) -> None:
        """Gives it back."""
        self.require_pending()
        self.state, self.lease_expire_time, self.reason = AssignmentState.RELEASED, None, reason

    def send_back(self, reason: str, now: datetime) -> None:
        """A reviewer wants it done again. Raises STATE_CONFLICT for what was not submitted."""
        if self.state != AssignmentState.SUBMITTED:
            message = f"{self.name} is {self.state}; only a submitted answer can be returned."
            raise DomainError("STATE_CONFLICT", message, name=self.name, state=self.state, wanted="SUBMITTED")
        self.state, self.reason, self.lease_expire_time = AssignmentState.RETURNED, reason, now + RETURN_LEASE

    def dispute(self, reason: str) -> None:
        """Stands by the answer. Raises STATE_CONFLICT for one that was not returned."""
        if self.state != AssignmentState.RETURNED:
            message = f"{self.name} is {self.state}; only a returned answer can be disputed."
            raise DomainError("STATE_CONFLICT", message, name=self.name, state=self.state, wanted="RETURNED")
        self.state, self.reason, self.lease_expire_time = AssignmentState.SUBMITTED, reason, None


def given(assignments: Sequence[WorkAssignment]) -> list[Answer]:
    """The answers that were submitted, in the order in which they came."""
    done = [a for a in assignments if a.state == AssignmentState.SUBMITTED and a.submit_time is not None]
    return [a.answer or {} for a in sorted(done, key=lambda a: (a.submit_time, a.uid))]
