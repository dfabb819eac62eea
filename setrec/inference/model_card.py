"""The model card of a published folder."""

import json
from typing import Any

from setrec.evaluation.results import LABELS, Protocol, format_table
from setrec.schemas import GROUPS

_CITATION = """@inproceedings{lin2025order,
  title     = {Order-agnostic Identifier for Large Language Model-based Generative Recommendation},
  author    = {Lin, Xinyu and Shi, Haihan and Wang, Wenjie and Feng, Fuli and Wang, Qifan and Ng, See-Kiong and Chua, Tat-Seng},
  booktitle = {SIGIR},
  year      = {2025}
}"""


def model_card(
    info: dict[str, Any],
    arguments: dict[str, Any],
    results: dict[str, Any] | None,
    text: dict[str, Any] | None,
    origin: dict[str, Any],
    license: str,
    data_license: str,
) -> str:
    """Write the card: Markdown, with the hub's metadata at the top.

    Args:
        info: see `Recommender.info`.
        arguments: the arguments of the model.
        results: the content of results.json; None if the model was never tested.
        text: the settings of the text encoder; None without one.
        origin: the frozen base that the weights leave out; {} without one.
        license: the licence of the weights, by the hub's name for it.
        data_license: what may be done with the data, in words; "" if unknown.
    """
    head = ["---", "library_name: setrec", f"license: {license}", "tags: [recommender-system, setrec, sequential]"]
    if origin:
        head.append(f"base_model: {json.dumps(origin['pretrained'])}")
    model = info["model"]
    more = "".join(f", {count} of {name}" for name, count in info["slots"].items() if name not in ("cf", "sem"))
    slots = f"{info['slots']['cf']} collaborative and {info['slots']['sem']} semantic slots an item{more}"
    encoder = text["class_path"].rpartition(".")[2] if text is not None else "none"
    trained = {name: value for name, value in arguments.items() if name not in ("backbone", "filter_seen", "top_k")}
    needs = (
        f"The weights are adapters on `{origin['pretrained']}` (revision {origin['revision'] or 'unknown'}), which is loaded "
        "from its own place and checked by a fingerprint."
        if origin
        else "The folder holds everything; loading needs no network."
    )
    parts = [
        "\n".join([*head, "---"]),
        f"# SETRec on {info['name']}",
        "Recommends the next item from the history of a user. Every item is an order-agnostic set of collaborative and semantic "
        "vectors, and one forward pass gives all of them ([paper](https://arxiv.org/abs/2502.10833)). New items can be added "
        "by their text, without training.",
        "```python\nfrom setrec import Recommender\n\n"
        'r = Recommender.from_pretrained("THIS FOLDER OR ITS NAME ON THE HUB")\n'
        'r.recommend([["ITEM ID", "ITEM ID"]], k=10, explain=True)\n'
        'r.add_items([{"id": "NEW ID", "title": "what it is called", "text": "what is known of it"}])\n```',
        needs,
        "## Model",
        f"{model['backbone']} {model['size']}, {model['weights']:,} weights, {slots}, beta {info['beta']:g} (weight of the "
        f"semantic slots). It reads the last {info['max_history']} items of a history. Text encoder: {encoder}.",
        "```json\n" + json.dumps(trained, indent=2) + "\n```",
        "## Data",
        f"Data set `{info['name']}`: {info['n_items']:,} items, {info['warm']:,} of them seen in training (warm), "
        f"{info['cold']:,} known by their text alone (cold)"
        + (f", {info['added']:,} of these added after training" if info["added"] else "")
        + f". Licence of the data: {data_license or 'not stated; ask where the data comes from'}.",
        "## Figures",
        _figures(results)
        if results is not None
        else "This model was published without a test run: its quality is not known.",
        "## Limits",
        "\n".join(
            [
                "- It recommends what the people in the data chose, with their biases; nothing corrects them.",
                "- The figures hold for the split stated above; later periods, other shops and other languages were not tested.",
                "- Cold and added items are known by their text alone: a wrong or empty text gives arbitrary recommendations.",
                "- Scores rank items for one history; they are not probabilities, and those of two histories cannot be compared.",
                "- The parts of an explanation add up to the score. They say how it was computed, not why a person would buy.",
                "- `catalogue.parquet` holds how often each item was bought; the folder holds no user's history.",
            ]
        ),
        "## Citation",
        f"```bibtex\n{_CITATION}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _figures(results: dict[str, Any]) -> str:
    """The tables of the test run, seen items masked and not masked, and its protocol."""
    protocol = Protocol(**results["protocol"])
    tables = [format_table(results, protocol, protocol.filter_seen)]
    if "other_filter" in results:
        tables.append(format_table(results["other_filter"], protocol, results["other_filter"]["filter_seen"]))
    short = ", ".join(
        f"{group} {results['metrics'][group]['recall@10']:.4f} / {results['metrics'][group]['ndcg@10']:.4f}"
        for group in GROUPS
        if protocol.users[group]
    )
    baselines = ", ".join(LABELS.get(name, name) for name in results["baselines"])
    lead = f"Test on {protocol.date[:10]}, Recall@10 / NDCG@10: {short}; compared with {baselines}."
    table = "\n\n".join(tables)
    return f"{lead}\n\n```\n{table}\n```\n\n" + "\n".join(f"- {line}" for line in protocol.lines())
