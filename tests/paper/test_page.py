from tiny_scale import TINY

from paper.finding import Chart, Effect, Estimate, Finding, conclude
from paper.page import report_page

CHART = Chart("lines", {"ours": "level", "none measured": "other"}, "N", "reward", log_x=True)


def a_result(effect: float):
    finding = Finding(
        "z",
        "Figure 0",
        "More is <b>more</b>.",
        "By counting.",
        lambda lab: {},
        (Effect("rises", "last minus first"),),
        (CHART,),
        notes="Tried twice.",
    )
    measured = {
        "rises": Estimate(effect, 0.1),
        "level/1": Estimate(0.0, 0.1),
        "level/4": Estimate(1.0, 0.1),
    }
    return conclude(finding, {1: measured, 2: measured}, {3: "no memory"} if effect == 0 else {})


def test_a_page_says_claim_test_numbers_and_verdict():
    page = report_page([a_result(1.0), a_result(-1.0), a_result(0.0)], TINY, 3.0).html()
    assert "More is &lt;b&gt;more&lt;/b&gt;." in page
    assert page.count("<svg ") == 3
    assert "1.000 [0.861, 1.139]" in page  # 1.96 × 0.1 / √2
    assert "Seed 3 failed: no memory" in page
    for verdict in ("reproduced", "not reproduced", "unclear"):
        assert f">{verdict}</span>" in page


def test_a_chart_without_numbers_is_left_out():
    finding = Finding("z", "", "", "", lambda lab: {}, (), (CHART,))
    page = report_page([conclude(finding, {}, {1: "broken"})], TINY, 0.0).html()
    assert "<svg " not in page
