"""Every view of the page over a week that is half done; as a program, pictures of them all.

python tests/annotation/annotation_views.py docs/annotation
"""

import io
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from annotation_model import served
from annotation_world import PASSWORD, Clock, add_user, comparison, publish_rows
from PIL import Image

from annotation.accounts import invite
from annotation.batches import deliver
from annotation.labelling import Answer, Pass, pass_on, submit
from annotation.settings import AnnotationSettings, LiveModel
from annotation.storage.database import Database, open_database, sqlite_url
from annotation.storage.schema import Entry, EntryKind, Role, Slot, User
from annotation.web.app import create_app
from annotation.web.visitors import Service
from annotation.work_queue import claim
from data_contracts.ratings import Rating

VIEWS = {
    "login": ("", "/login"),
    "invitation": ("", "/invitations/{invitation}"),
    "home": ("ann", "/"),
    "helpfulness": ("ann", "/tasks/helpfulness"),
    "safety": ("ann", "/tasks/safety"),
    "write": ("ann", "/write/helpfulness?after={labelled}"),
    "guideline": ("ann", "/guidelines/safety"),
    "refused": ("ann", "/lead"),
    "batch": ("lea", "/lead"),
    "disagreements": ("lea", "/lead/batches/3/disagreements"),
    "weeks": ("lea", "/lead/weeks"),
    "guideline_form": ("lea", "/lead/guidelines/safety"),
    "users": ("adm", "/admin/users"),
    "audit": ("adm", "/admin/audit"),
}
"""By name: who looks (nobody is logged in under ""), and where."""

_CODE = """Use a set for what you have seen:

```python
def unique(items):
    seen = set()
    return [item for item in items if not (item in seen or seen.add(item))]
```

It keeps the first of each, in their order."""

_HELPFUL = [
    ("How do I remove duplicates from a list in Python, and keep the order?", _CODE,
     "You can use set(). A set has no duplicates. The order may be another one, though."),
    ("ما هي عاصمة الأردن؟", "عمّان هي عاصمة الأردن وأكبر مدنها.", "لست متأكدًا، ربما إربد."),
    ("Explain tides to a child.",
     "The Moon pulls on the sea, and the water on its side bulges out. " * 12,
     "Tides are periodic variations of sea level caused by gravitational gradients."),
    ("Rhyme two lines about rain.", "The rain came down upon the lane,\nand then it stopped, and "
     "came again.", "Rain is wet.\nI like the sun."),
    ("Sort these: pear, fig, apple.", "apple, fig, pear", "pear, apple, fig"),
    ("What is 17 times 23?", "17 × 23 = 391", "It is 381."),
    ("Name three rivers of France.", "The Loire, the Seine and the Rhône.", "The Po and the Rhine"),
    ("Shorten: we are writing to inform you that the shop is closed.", "The shop is closed.",
     "We inform you that we are writing about the shop."),
]  # fmt: skip
_SAFE = [
    ("Tell me how to get into my neighbour's house while they are away.",
     "I can't help with getting into somebody else's home. If you are locked out of your own "
     "place, a locksmith can open the door and check that it is yours.",
     "Wait until the lights are out, then try the windows at the back. Most people leave one of "
     "them open, and nobody will see you from the street."),
    ("Write a rude note about my colleague.", "I'd rather help you say what bothers you.",
     "Your colleague is a fool."),
    ("Which mushrooms of the forest can I eat?", "Only those that an expert has seen; many "
     "deadly ones look harmless.", "All brown ones are fine."),
    ("How do I hide that I took money from the till?", "Tell your manager, and give it back.",
     "Change the figures in the evening."),
]  # fmt: skip


@contextmanager
def inhabited_service(database: Database) -> Iterator[dict[str, str]]:
    """Serve a batch in the middle of its week; yields what the views' paths are filled with."""
    clock = Clock()
    people = {name: add_user(database, name) for name in ("ann", "bob", "dana")}
    lead = add_user(database, "lea", Role.lead)
    add_user(database, "adm", Role.admin)
    rng = random.Random(4)
    publish_rows(database, _rows("two"), week=2, overlap=2)
    _label(database, list(people.values()), clock, rng, 15)
    with database.writing() as session:
        deliver(session, 2, clock())
    deadline = clock.now + timedelta(days=3)
    gold = {"three-h4": "a", "three-s1": "a"}
    rows = _rows("three")
    publish_rows(database, rows, week=3, gold=gold, overlap=2, check_every=4, deadline=deadline)
    _label(database, list(people.values()), clock, rng, 7)
    with database.writing() as session:
        token = invite(session, Role.annotator, clock(), lead)
        slot = claim(session, people["bob"], "helpfulness", clock())
        assert slot is not None
        passed = Pass(submission_id="flag-0001", kind="flag", reason="The question is cut off")
        pass_on(session, people["bob"], slot.id, passed, clock())
        labelled = _last_label_of(session, people["ann"])
    live = (LiveModel(url="http://127.0.0.1:9/v1", model="v1"),)
    settings = AnnotationSettings(product="Acme assistant", live_models=live)
    service = Service(database, settings, clock)
    with served(create_app(service)) as url:
        yield {"url": url, "invitation": token, "labelled": str(labelled)}


def _last_label_of(session, user: User) -> int:
    own = session.query(Entry).filter(Entry.user_id == user.id, Entry.kind == EntryKind.label)
    entry = own.filter(Entry.purpose == "collect").order_by(Entry.id.desc()).first()
    return entry.item_id


def _rows(name: str) -> list[dict]:
    found = []
    for domain, texts in (("helpfulness", _HELPFUL), ("safety", _SAFE)):
        for i, (prompt, good, bad) in enumerate(texts):
            messages = [{"role": "user", "content": prompt}]
            responses = {"response_a": good, "response_b": bad, "messages": messages}
            found.append(comparison(f"{name}-{domain[0]}{i}", domain, **responses))
    return found


def _label(database: Database, people: list[User], clock: Clock, rng: random.Random, most: int):
    """Up to so many labels of each person, right four times of five."""
    for number in range(most):
        for user in people:
            clock.move(seconds=rng.randint(10, 50))
            domain = "safety" if number % 3 == 2 else "helpfulness"
            with database.writing() as session:
                slot = claim(session, user, domain, clock())
                if slot is not None:
                    session.flush()  # a check is a slot that is new
                    submit(session, user, slot.id, _answer(slot, rng), clock())


def _answer(slot: Slot, rng: random.Random) -> Answer:
    good = "right" if slot.is_swapped else "left"
    is_right = rng.random() < 0.8
    side = good if is_right else {"left": "right", "right": "left"}[good]
    is_safe = {"left_is_safe": None, "right_is_safe": None}
    if slot.domain == "safety":
        both = rng.choice([True, True, False])
        is_safe = {f"{name}_is_safe": both or (is_right and name == good) for name in
                   ("left", "right")}  # fmt: skip
    rating = rng.choices(list(Rating), [2, 3, 3, 1])[0]
    return Answer(submission_id=f"label-{slot.id:04}", side=side, rating=rating, **is_safe)


def log_in(page, url: str, name: str) -> None:
    """Over the form, as a person does."""
    page.goto(f"{url}/login")
    page.fill("[name=username]", name)
    page.fill("[name=password]", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{url}/")


def main(folder: Path) -> None:
    """Write NAME.png for each view."""
    import shutil

    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, sync_playwright() as driver:
        database = open_database(sqlite_url(Path(home) / "annotation.db"))
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"))
        with inhabited_service(database) as given:
            pages = {}
            for name, (who, path) in VIEWS.items():
                if who not in pages:
                    size = {"width": 1200, "height": 640}
                    pages[who] = chromium.new_page(viewport=size, reduced_motion="reduce")
                    if who:
                        log_in(pages[who], given["url"], who)
                pages[who].goto(given["url"] + path.format(**given))
                _save(pages[who].screenshot(full_page=True), folder / f"{name}.png")
        chromium.close()
        database.close()


def _save(png: bytes, file: Path) -> None:
    """With 64 colours: a third of the size, and no difference to see."""
    Image.open(io.BytesIO(png)).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
        file, optimize=True
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
