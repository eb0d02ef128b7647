"""Label Studio: its JSON of tasks, with the pairwise template.

`CONFIG` is the labelling interface to paste into a project's settings; annotations made there
come back through `from_tasks`, and ours appear there as finished ones.

Label Studio knows no pseudonyms: it refuses an unknown `completed_by` and sets `created_at` itself.
What it keeps word for word is `result`, so ours stand there, in the `meta` of the choice.
"""

import json
from typing import Any

from annotation.formats.reading import from_json_list, read_record
from annotation.formats.records import Record, RecordedLabel, prompt_text
from data_contracts.errors import UserError
from data_contracts.ratings import Rating, SafetyLabel

CONFIG = """\
<View>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="pick" toName="text1,text2"/>
  <Text name="text1" value="$text1"/>
  <Text name="text2" value="$text2"/>
  <Choices name="rating" toName="prompt" choice="single" required="true">
    <Choice value="significantly_better"/>
    <Choice value="better"/>
    <Choice value="slightly_better"/>
    <Choice value="negligibly_better"/>
  </Choices>
  <Choices name="safety_label" toName="prompt" choice="single">
    <Choice value="chosen_safe_other_unsafe"/>
    <Choice value="both_safe"/>
    <Choice value="both_unsafe"/>
  </Choices>
  <TextArea name="edited_response" toName="prompt" rows="4" maxSubmissions="1"/>
</View>
"""

_SIDE_OF = {"a": "left", "b": "right"}
_PICK_OF = {side: pick for pick, side in _SIDE_OF.items()}


def to_tasks(records: list[Record]) -> str:
    """Tasks with annotations, as `Import` takes them."""
    return json.dumps([_task(record) for record in records], ensure_ascii=False, indent=1)


def from_tasks(text: str) -> list[Record]:
    """The records of an export in Label Studio's JSON format.

    Raises UserError for a task without our columns, or an annotation without choice or rating, or
    with several texts as its edited response.
    """
    return [
        read_record(f"task {number} of the list", task, _record, ("data", "comparison_id"))
        for number, task in enumerate(from_json_list(text), start=1)
    ]


def _task(record: Record) -> dict[str, Any]:
    fields = record.comparison()
    fields["text1"] = fields.pop("response_a")
    fields["text2"] = fields.pop("response_b")
    return {
        "data": {**fields, "prompt": prompt_text(record)},
        "annotations": [_annotation(label) for label in record.labels],
    }


def _annotation(label: RecordedLabel) -> dict[str, Any]:
    side = _SIDE_OF[label.pick]
    origin = label.model_dump(mode="json", include={"annotator", "created_at"})
    result = [
        {
            "from_name": "pick",
            "to_name": "text1,text2",
            "type": "pairwise",
            "value": {"selected": side},
            "meta": origin,
        },
        _choices("rating", label.rating),
    ]
    if label.safety_label is not None:
        result.append(_choices("safety_label", label.safety_label))
    if label.edited_response is not None:
        value = {"text": [label.edited_response]}
        result.append(_prompt_result("edited_response", "textarea", value))
    return {"result": result}


def _choices(name: str, choice: Rating | SafetyLabel) -> dict[str, Any]:
    return _prompt_result(name, "choices", {"choices": [choice.value]})


def _prompt_result(name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": "prompt", "type": kind, "value": value}


def _record(task: dict[str, Any]) -> Record:
    data = dict(task["data"])
    data.pop("prompt", None)
    try:
        data["response_a"], data["response_b"] = data.pop("text1"), data.pop("text2")
    except KeyError as missing:
        raise UserError(
            f"its data has no field {missing}",
            "Import tasks that `rlhf annotations export --format label_studio` wrote",
        ) from None
    kept = [a for a in task.get("annotations", []) if not a.get("was_cancelled")]
    return Record.model_validate({**data, "labels": [_label(a) for a in kept]})


def _label(annotation: dict[str, Any]) -> dict[str, Any]:
    results = {result["from_name"]: result for result in annotation["result"]}
    values = {name: result["value"] for name, result in results.items()}
    pick = values.get("pick", {}).get("selected")
    rating = _only_one(values, "rating", "choices")
    if pick is None or rating is None:
        raise UserError(
            "an annotation has no choice, or no rating",
            "Complete it in Label Studio, or cancel it there",
        )
    return {
        **_origin(annotation, results["pick"].get("meta", {})),
        "pick": _PICK_OF.get(pick),
        "rating": rating,
        "safety_label": _only_one(values, "safety_label", "choices"),
        "edited_response": _only_one(values, "edited_response", "text"),
    }


def _only_one(values: dict[str, Any], name: str, kind: str) -> Any:
    """What a result says; None where it is not there or empty. Raises UserError for several."""
    given = values.get(name, {}).get(kind, [])
    if not isinstance(given, list) or len(given) > 1:
        raise UserError(
            f"an annotation's {name} is not one {kind.removesuffix('s')} alone",
            "Keep one of them in Label Studio; the text field of our labelling interface takes "
            "one only",
        )
    return given[0] if given else None


def _origin(annotation: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """Who said it and when: ours where it came from us, else Label Studio's own."""
    if "annotator" in meta:
        return {"annotator": meta["annotator"], "created_at": meta.get("created_at")}
    who = annotation["completed_by"]
    name = str(who["email"] if isinstance(who, dict) else who)
    return {"annotator": name, "created_at": annotation["created_at"]}
