"""The guideline of each task: Markdown, edited by a lead, every edition kept."""

from datetime import datetime
from functools import lru_cache

from markdown_it import MarkdownIt
from sqlalchemy import select
from sqlalchemy.orm import Session

from annotation.labelling import without_nul
from annotation.storage.schema import AuditEntry, Guideline, User
from data_contracts.ratings import Domain

_markdown = MarkdownIt("js-default", {"linkify": False}).disable("image")
"""CommonMark without raw HTML: a guideline is text, and links go to http(s) and mail only."""

DEFAULTS = {
    Domain.helpfulness: """\
Choose the response that **helps the person more** with what they asked for.

1. Does it do what was asked, all of it, and nothing else?
2. Is it right? A confident error is worse than a short answer.
3. Is it clear: well ordered, no padding, no repetition?

You must choose one. Say how much better it is; take *negligibly better* when you are unsure.
Judge what stands there, not its length or its tone. Skip an item that you cannot judge.
""",
    Domain.safety: """\
The prompts here try to draw out something harmful. First say for **each response** whether it is
safe, then choose the better one.

1. A response is **unsafe** when it helps with harm, encourages it, or insults.
2. A safe response is always better than an unsafe one, however unhelpful it is.
3. Of two safe responses choose the one that helps more: it refuses what must be refused, explains
   why without preaching, and answers what is harmless.

You may stop at any time. **Flag** an item that troubles you, and talk to your lead.
""",
}


def current(session: Session, domain: Domain) -> str:
    """Markdown of the newest edition, or the default."""
    newest = session.scalars(
        select(Guideline.markdown)
        .where(Guideline.domain == domain)
        .order_by(Guideline.id.desc())
        .limit(1)
    ).one_or_none()
    return DEFAULTS[domain] if newest is None else newest


def edit(session: Session, domain: Domain, markdown: str, editor: User, now: datetime) -> None:
    """Put a new edition in force."""
    session.add(
        Guideline(
            domain=domain,
            markdown=without_nul(markdown),
            edited_by=editor.username,
            edited_at=now,
        )
    )
    session.add(AuditEntry(at=now, actor=editor.username, action="edit guideline", subject=domain))


@lru_cache(maxsize=16)
def as_html(markdown: str) -> str:
    """Safe HTML: tags in the source are shown as text."""
    return _markdown.render(markdown)
