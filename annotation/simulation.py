"""Simulated annotators at the real page, over HTTP: for demonstrations and load tests.

They see what a person sees and judge it with the sandbox's gold judge and Bradley-Terry noise.
"""

import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx

from annotation.page_reader import WorkPage, read_page
from data_contracts.errors import UserError
from data_contracts.ratings import Domain, SafetyLabel
from stages.sandbox.annotator import AnnotatorSettings, annotate

_TIMEOUT_SECONDS = 30
PATIENCE_SECONDS = 60
"""Time for which a service that does not answer is asked again."""

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0


@dataclass
class Tally:
    """What one simulated annotator did."""

    submission_ids: list[str] = field(default_factory=list)
    """Of labels that the service acknowledged."""
    slots: list[int] = field(default_factory=list)
    """Slots that were labelled, in the same order."""
    num_skipped: int = 0
    num_taken: int = 0
    """Answers that came too late: somebody else had the item by then."""
    num_retries: int = 0
    """Requests that were sent again because the service did not answer."""
    seconds: list[float] = field(default_factory=list)
    """Time of every acknowledged submission, its last attempt alone."""


def simulate(
    url: str,
    invitations: list[str],
    domains: list[Domain],
    settings: AnnotatorSettings,
    seed: int,
    *,
    num_labels: int | None = None,
    keeps_going: Callable[[], bool] = lambda: True,
) -> list[Tally]:
    """One annotator for each invitation, all at once, until nothing is left to label.

    `num_labels` stops each after so many labels, `keeps_going` all of them.
    """
    people = [
        SimulatedAnnotator(url, token, person, settings, seed)
        for person, token in enumerate(invitations)
    ]
    with ThreadPoolExecutor(len(people)) as pool:
        work = [pool.submit(p.work, domains, num_labels, keeps_going) for p in people]
        return [future.result() for future in work]


class SimulatedAnnotator:
    """A browser with somebody in front of it who judges by rule and with noise."""

    def __init__(
        self,
        url: str,
        invitation: str,
        person: int,
        settings: AnnotatorSettings,
        seed: int,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._client = httpx.Client(base_url=url, timeout=_TIMEOUT_SECONDS, trust_env=False)
        self._invitation = invitation
        self._patience_seconds = patience_seconds
        spread = settings.spread[person % len(settings.spread)]
        self._settings = settings.model_copy(update={"spread": (spread,)})
        self._seed = f"{seed}/{person}"
        self._tally = Tally()
        self._is_registered = False

    def work(
        self, domains: list[Domain], num_labels: int | None, keeps_going: Callable[[], bool]
    ) -> Tally:
        """Label task after task; makes an account first, where there is none yet."""
        if not self._is_registered:
            self.register()
        for domain in domains:
            page = self._open(f"/tasks/{domain}")
            while page.slot_id is not None and self._wants_more(num_labels) and keeps_going():
                page = self._answer(page, domain)
        self._client.close()
        return self._tally

    def _wants_more(self, num_labels: int | None) -> bool:
        return num_labels is None or len(self._tally.slots) < num_labels

    def register(self) -> None:
        """Accept the invitation."""
        form = {"username": f"simulated-{secrets.token_hex(6)}", "password": secrets.token_hex()}
        reply = self._send("POST", f"/invitations/{self._invitation}", form)
        if reply.status_code == 404:  # the account was made, and its answer was lost
            reply = self._send("POST", "/login", form)
        if reply.status_code != 303:
            raise UserError(
                f"The service answers {reply.status_code} to an invitation", "Look up why"
            )
        self._is_registered = True

    def _open(self, path: str) -> WorkPage:
        return read_page(self._send("GET", path).text)

    def _answer(self, page: WorkPage, domain: Domain) -> WorkPage:
        form = self._choice(page, domain)
        verb = "label" if "choice" in form else "pass"
        started = time.monotonic()
        reply = self._send("POST", f"/slots/{page.slot_id}/{verb}", form)
        if reply.status_code == 409:
            self._tally.num_taken += 1
            return self._open(f"/tasks/{domain}")
        if reply.status_code != 200:
            raise UserError(
                f"The service refuses a {verb}: {read_page(reply.text).notice.strip()}",
                "Look up why",
            )
        self._note(page, form, time.monotonic() - started)
        return read_page(reply.text)

    def _note(self, page: WorkPage, form: dict[str, str], seconds: float) -> None:
        assert page.slot_id is not None
        if "choice" not in form:
            self._tally.num_skipped += 1
            return
        self._tally.submission_ids.append(form["submission_id"])
        self._tally.slots.append(page.slot_id)
        self._tally.seconds.append(seconds)

    def _choice(self, page: WorkPage, domain: Domain) -> dict[str, str]:
        """The form that this annotator sends: a label, or a skip where no label is allowed."""
        form = {"csrf": page.csrf, "submission_id": secrets.token_hex(16)}
        row = {
            "comparison_id": f"{self._seed}/{page.slot_id}",
            "messages": page.messages,
            "response_a": page.left,
            "response_b": page.right,
            "category": page.category,
        }
        labels = annotate([row], domain, self._settings, seed=0)
        if not labels:
            return {**form, "kind": "skip", "reason": "cannot be compared"}
        label = labels[0]
        side = "left" if label["chosen"] == page.left else "right"
        form |= {"choice": f"{side}-{label['rating']}", "shown": page.shown}
        return form | _safety_fields(side, label["safety_label"])

    def _send(self, method: str, path: str, form: dict[str, str] | None = None) -> httpx.Response:
        """A request, sent again while the service does not answer or is starting up."""
        deadline = time.monotonic() + self._patience_seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                reply = self._client.request(
                    method, path, data=form, headers={"HX-Request": "true"} if form else {}
                )
                if reply.status_code < 500:
                    return reply
                raise httpx.ReadError(f"status {reply.status_code}")
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"The service does not answer: {error}", "Check its address and its log"
                    ) from error
                self._tally.num_retries += 1
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _safety_fields(side: str, label: str | None) -> dict[str, str]:
    if label is None:
        return {}
    chosen = "unsafe" if label == SafetyLabel.both_unsafe else "safe"
    other = "safe" if label == SafetyLabel.both_safe else "unsafe"
    left, right = (chosen, other) if side == "left" else (other, chosen)
    return {"left_safety": left, "right_safety": right}
