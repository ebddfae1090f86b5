"""OpenChat."""

from __future__ import annotations

from luthier.records import Special
from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

TEMPLATES.register("openchat")(
    Template(
        "openchat",
        user=("GPT4 Correct User: {{content}}", Special.EOS, "GPT4 Correct Assistant:"),
        prefix=(Special.BOS,),
    )
)
TEMPLATES.register("openchat-3.6")(
    Template(
        "openchat-3.6",
        user=(
            "<|start_header_id|>GPT4 Correct User<|end_header_id|>\n\n{{content}}<|eot_id|>"
            "<|start_header_id|>GPT4 Correct Assistant<|end_header_id|>\n\n",
        ),
        prefix=(Special.BOS,),
        stop_words=("<|eot_id|>",),
    )
)
