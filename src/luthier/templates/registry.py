"""the templates by name."""

from __future__ import annotations

from luthier.registry import Registry
from luthier.templates.template import Template

TEMPLATES: Registry[Template] = Registry("template", "luthier.templates.families")

MULTIMODAL = frozenset(
    """
    dots_ocr ernie_vl gemma3n gemma4 gemma4n glm4v glm4_5v glm_ocr granite3_vision intern_vl
    intern_s1 keye_vl kimi_vl lfm2_vl llama4 mllama moss_vl llava llava_next llava_next_llama3
    llava_next_mistral llava_next_qwen llava_next_yi llava_next_video llava_next_video_mistral
    llava_next_video_yi mimo_vl minicpm_v minicpm_v_4_6 minicpm_o ministral3 paligemma
    paligemma_chat pixtral qwen2_audio qwen2_omni qwen3_omni qwen3_omni_nothink qwen2_vl qwen3_vl
    qwen3_vl_nothink qwen3_5 qwen3_5_nothink qwen3_6 video_llava yi_vl youtu_vl
    """.split()
)
"""Names of templates for models that read images, video or sound: known, not available yet."""

NOT_YET = frozenset({"hy_dense_1_8b", "hy_dense_7b"})
"""Names of templates for text models that are known, not available yet."""
