"""Texts that run a script where a page is careless: built from parts, each set `window.hit`."""

_SCRIPT = "window.hit=1"

_ELEMENTS = [
    f"<script>{_SCRIPT}</script>",
    f"<SCRIPT>{_SCRIPT}</SCRIPT>",
    f"<script/x>{_SCRIPT}</script>",
    "<script src=data:text/javascript,window.hit=1></script>",
    f"<svg><script>{_SCRIPT}</script></svg>",
    f'<iframe srcdoc="<script>parent.{_SCRIPT}</script>"></iframe>',
    f'<iframe src="javascript:parent.{_SCRIPT}"></iframe>',
    f'<object data="javascript:{_SCRIPT}"></object>',
    f'<embed src="javascript:{_SCRIPT}">',
    f'<a href="javascript:{_SCRIPT}">x</a>',
    f'<form action="javascript:{_SCRIPT}"><button>x</button></form>',
    f'<math href="javascript:{_SCRIPT}">x</math>',
    '<base href="javascript:/a/">',
    '<meta http-equiv="refresh" content="0;url=javascript:window.hit=1">',
    '<link rel=stylesheet href="data:text/css,*{x:expression(window.hit=1)}">',
    "<style>@import 'javascript:window.hit=1';</style>",
    "<!--><script>window.hit=1</script>-->",
    "<![CDATA[<script>window.hit=1</script>]]>",
    "<noscript><p title='</noscript><img src=x onerror=window.hit=1>'>",
    "<template><script>window.hit=1</script></template>",
]
_HANDLERS = [
    f"<{tag} {event}={_SCRIPT}>"
    for tag, event in [
        ("img src=x", "onerror"), ("svg", "onload"), ("body", "onload"), ("video src=x", "onerror"),
        ("audio src=x", "onerror"), ("input autofocus", "onfocus"), ("details open", "ontoggle"),
        ("select autofocus", "onfocus"), ("textarea autofocus", "onfocus"), ("marquee", "onstart"),
        ("div", "onmouseover"), ("p", "onclick"), ("a href=#", "onclick"), ("iframe", "onload"),
        ("object", "onerror"), ("button", "onpointerenter"), ("style", "onload"),
    ]
]  # fmt: skip
_HTMX = [
    "<div hx-get='/' hx-trigger=load hx-on::load='window.hit=1'></div>",
    "<div hx-vals='js:{a: window.hit=1}' hx-post='/undo' hx-trigger=load></div>",
    "<div data-hx-on:click='window.hit=1'></div>",
    "<div hx-get='data:text/html,<script>window.hit=1</script>' hx-trigger=load></div>",
]
_BREAKOUTS = ['"', "'", '">', "'>", "</textarea>", "</div>", "</code>", "</title>", "--> "]
_MARKDOWN = [
    "[x](javascript:window.hit=1)",
    "[x](JaVaScRiPt:window.hit=1)",
    "[x](data:text/html,<script>window.hit=1</script>)",
    "[x](vbscript:window.hit=1)",
    "![x](javascript:window.hit=1)",
    "![x](x 'onerror=window.hit=1')",
    "<javascript:window.hit=1>",
    "[x]: javascript:window.hit=1\n\n[x]",
    "```html\n<script>window.hit=1</script>\n```",
    "[x](&#106;avascript:window.hit=1)",
]
_TEMPLATES = [
    "{{ 7 * 7 }}",
    "{% raw %}<script>window.hit=1</script>{% endraw %}",
    "${window.hit=1}",
]

PAYLOADS = [
    *_ELEMENTS,
    *_HANDLERS,
    *_HTMX,
    *_MARKDOWN,
    *_TEMPLATES,
    *(quote + element for quote in _BREAKOUTS for element in (*_ELEMENTS[:2], *_HANDLERS[:3])),
    *(f"{quote} onfocus=window.hit=1 autofocus x={quote}" for quote in _BREAKOUTS[:2]),
]
