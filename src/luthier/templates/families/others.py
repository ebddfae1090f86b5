"""families of one to three templates each."""

from __future__ import annotations

from luthier.templates.families.plain import VICUNA_SYSTEM
from luthier.templates.template import PLAIN

PLAIN.register(
    "bailing",
    user="<role>HUMAN</role>{{content}}<role>ASSISTANT</role>",
    system="<role>SYSTEM</role>{{content}}",
    observation="<role>OBSERVATION</role>{{content}}<role>ASSISTANT</role>",
    stop_words=("<|endoftext|>",),
    efficient_eos=True,
)
PLAIN.register(
    "bailing_v2",
    user="<role>HUMAN</role>{{content}}<|role_end|><role>ASSISTANT</role>",
    assistant="{{content}}<|role_end|>",
    system="<role>SYSTEM</role>{{content}}<|role_end|>",
    observation=(
        "<role>OBSERVATION</role>\n<tool_response>\n{{content}}\n</tool_response><|role_end|>"
        "<role>ASSISTANT</role>"
    ),
    stop_words=("<|endoftext|>",),
    tool_format="ling",
    efficient_eos=True,
)

PLAIN.register(
    "ernie",
    user="<|im_start|>user\n{{content}}<|im_end|>\n\n<|im_start|>assistant\n",
    assistant="{{content}}<|im_end|>\n\n",
    system="<|im_start|>system\n{{content}}<|im_end|>\n\n",
    observation="<|im_start|>tool\n{{content}}<|im_end|>\n\n<|im_start|>assistant\n",
    default_system="<global_setting>\nthink_mode=True\n</global_setting>",
    stop_words=("<|im_end|>",),
)
PLAIN.register(
    "ernie_nothink",
    user="User: {{content}}\nAssistant: ",
    assistant="{{content}}<|end_of_sentence|>",
    system="{{content}}\n",
    prefix="<|begin_of_sentence|>",
    stop_words=("<|end_of_sentence|>",),
)
PLAIN.register(
    "ernie_vl",
    user="User: {{content}}",
    assistant="\nAssistant: {{content}}<|end_of_sentence|>",
    system="{{content}}\n",
    stop_words=("<|end_of_sentence|>",),
    is_reasoning=True,
    replace_eos=True,
    replace_chat_template=True,
)

PLAIN.register(
    "gpt_oss",
    user="<|start|>user<|message|>{{content}}<|end|><|start|>assistant",
    assistant="{{content}}",
    system="<|start|>system<|message|>{{content}}<|end|>",
    default_system="You are ChatGPT, a large language model trained by OpenAI.",
    thought_words=(
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    plain_opening="<|channel|>final<|message|>",
    turn_end="<|end|>",
    is_reasoning=True,
    efficient_eos=True,
)

GRANITE = PLAIN.but(
    user=(
        "<|start_of_role|>user<|end_of_role|>{{content}}<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>"
    ),
    assistant="{{content}}<|end_of_text|>\n",
    system="<|start_of_role|>system<|end_of_role|>{{content}}<|end_of_text|>\n",
)

GRANITE.register("granite3")
GRANITE.register(
    "granite4",
    observation=(
        "<|start_of_role|>tool<|end_of_role|>{{content}}<|end_of_text|>\n"
        "<|start_of_role|>assistant\n"
    ),
    default_system="You are Granite, developed by IBM. You are a helpful AI assistant.",
    stop_words=("<|end_of_text|>",),
)
PLAIN.register(
    "granite3_vision",
    user="<|user|>\n{{content}}\n<|assistant|>\n",
    system="<|system|>\n{{content}}\n",
    default_system=VICUNA_SYSTEM,
)

KIMI = PLAIN.but(
    user=(
        "<|im_user|>user<|im_middle|>{{content}}<|im_end|><|im_assistant|>assistant<|im_middle|>"
    ),
    assistant="{{content}}<|im_end|>",
    system="<|im_system|>system<|im_middle|>{{content}}<|im_end|>",
    stop_words=("<|im_end|>",),
)

KIMI.register(
    "moonlight",
    default_system="You are a helpful assistant provided by Moonshot-AI.",
    replace_eos=True,
)
KIMI.register(
    "kimi_vl",
    default_system="You are a helpful assistant",
    thought_words=("◁think▷", "◁/think▷"),
    is_reasoning=True,
)

_BEGIN, _END = "<beginning_of_sentence>", "<end_of_sentence>"

PLAIN.register(
    "minimax1",
    user=f"{_BEGIN}user name=user\n{{{{content}}}}{_END}\n{_BEGIN}ai name=assistant\n",
    assistant=f"{{{{content}}}}{_END}\n",
    system=f"{_BEGIN}system ai_setting=assistant\n{{{{content}}}}{_END}\n",
    observation=f"{_BEGIN}tool name=tools\n{{{{content}}}}{_END}\n{_BEGIN}ai name=assistant\n",
    default_system="You are a helpful assistant.",
    stop_words=(_END,),
    tool_format="minimax1",
)
PLAIN.register(
    "minimax2",
    user="]~b]user\n{{content}}[e~[\n]~b]ai\n",
    assistant="{{content}}[e~[\n",
    system="]~!b[]~b]system\n{{content}}[e~[\n",
    observation="]~b]tool\n<response>{{content}}</response>[e~[\n]~b]ai\n",
    default_system=(
        "You are a helpful assistant. Your name is MiniMax-M2.1 and is built by MiniMax."
    ),
    stop_words=("[e~[",),
    tool_format="minimax2",
    is_reasoning=True,
)

PLAIN.register(
    "openchat",
    user="GPT4 Correct User: {{content}}{{eos}}GPT4 Correct Assistant:",
    prefix="{{bos}}",
)
PLAIN.register(
    "openchat-3.6",
    user=(
        "<|start_header_id|>GPT4 Correct User<|end_header_id|>\n\n{{content}}<|eot_id|>"
        "<|start_header_id|>GPT4 Correct Assistant<|end_header_id|>\n\n"
    ),
    prefix="{{bos}}",
    stop_words=("<|eot_id|>",),
)

PHI = PLAIN.but(
    user="<|user|>\n{{content}}<|end|>\n<|assistant|>\n",
    assistant="{{content}}<|end|>\n",
    system="<|system|>\n{{content}}<|end|>\n",
    stop_words=("<|end|>",),
)
PHI.register("phi", "phi_small", replace_eos=True)
PHI.register("starchat", user="<|user|>\n{{content}}<|end|>\n<|assistant|>")
PLAIN.register(
    "phi4",
    user="<|im_start|>user<|im_sep|>{{content}}<|im_end|><|im_start|>assistant<|im_sep|>",
    assistant="{{content}}<|im_end|>",
    system="<|im_start|>system<|im_sep|>{{content}}<|im_end|>",
    stop_words=("<|im_end|>",),
    replace_eos=True,
)
PLAIN.register(
    "phi4_mini",
    user="<|user|>{{content}}<|end|><|assistant|>",
    assistant="{{content}}<|end|>",
    system="<|system|>{{content}}<|end|>",
    stop_words=("<|end|>",),
    tool_format="phi4_mini",
    replace_eos=True,
)

SEED = PLAIN.but(
    user="{{bos}}user\n{{content}}{{eos}}{{bos}}assistant\n",
    system="{{bos}}system\n{{content}}{{eos}}",
)

SEED.register(
    "seed_coder",
    default_system=(
        "You are an AI programming assistant, utilizing the Seed-Coder model, developed by "
        "ByteDance Seed, and you only answer questions related to computer science. For "
        "politically sensitive questions, security and privacy issues, and other non-computer "
        "science questions, you will refuse to answer.\n\n"
    ),
)
SEED.register(
    "seed_oss",
    function="{{bos}}\n{{content}}{{eos}}",
    tool_format="seed_oss",
    thought_words=("<seed:think>", "</seed:think>"),
    is_reasoning=True,
)

PLAIN.register(
    "zephyr",
    user="<|user|>\n{{content}}{{eos}}<|assistant|>\n",
    system="<|system|>\n{{content}}{{eos}}",
    default_system="You are Zephyr, a helpful assistant.",
)

PLAIN.register("breeze", user="[INST] {{content}} [/INST] ", prefix="{{bos}}", efficient_eos=True)
PLAIN.register(
    "cohere",
    user=(
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{content}}<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
    ),
    system="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{{content}}<|END_OF_TURN_TOKEN|>",
    prefix="{{bos}}",
)
PLAIN.register(
    "dots_ocr",
    user="<|user|>{{content}}<|endofuser|><|assistant|>",
    assistant="{{content}}<|endofassistant|>",
    system="<|system|>{{content}}<|endofsystem|>\n",
    stop_words=("<|endofassistant|>",),
    efficient_eos=True,
)
PLAIN.register(
    "exaone",
    user="[|user|]{{content}}\n[|assistant|]",
    assistant="{{content}}{{eos}}\n",
    system="[|system|]{{content}}[|endofturn|]\n",
)
PLAIN.register(
    "falcon", user="User: {{content}}\nFalcon:", assistant="{{content}}\n", efficient_eos=True
)
PLAIN.register(
    "index", user="reserved_0{{content}}reserved_1", system="<unk>{{content}}", efficient_eos=True
)
PLAIN.register("olmo", user="<|user|>\n{{content}}<|assistant|>\n", prefix="{{eos}}")
PLAIN.register(
    "solar",
    user="### User:\n{{content}}\n\n### Assistant:\n",
    system="### System:\n{{content}}\n\n",
    efficient_eos=True,
)
PLAIN.register(
    "telechat2",
    user="<_user>{{content}}<_bot>",
    system="<_system>{{content}}",
    default_system=(
        "你是中国电信星辰语义大模型，英文名是TeleChat，你是由中电信人工智能科技有限公司和"
        "中国电信人工智能研究院（TeleAI）研发的人工智能助手。"
    ),
)
PLAIN.register(
    "xuanyuan",
    user="Human: {{content}} Assistant:",
    default_system=(
        "以下是用户和人工智能助手之间的对话。用户以Human开头，人工智能助手以Assistant开头，"
        "会对人类提出的问题给出有帮助、高质量、详细和礼貌的回答，并且总是拒绝参与与不道德、"
        "不安全、有争议、政治敏感等相关的话题、问题和指示。\n"
    ),
)
PLAIN.register(
    "yi_vl",
    user="### Human: {{content}}\n### Assistant:",
    assistant="{{content}}\n",
    default_system=(
        "This is a chat between an inquisitive human and an AI assistant. Assume the role of "
        "the AI assistant. Read all the images carefully, and respond to the human's questions "
        "with informative, helpful, detailed and polite answers. "
        "这是一个好奇的人类和一个人工智能助手之间的对话。假设你扮演这个AI助手的角色。"
        "仔细阅读所有的图像，并对人类的问题做出信息丰富、有帮助、详细的和礼貌的回答。\n\n"
    ),
    stop_words=("###",),
    efficient_eos=True,
)
PLAIN.register(
    "youtu",
    user="<|User|>{{content}}<|Assistant|>",
    assistant="{{content}}<|end_of_text|>",
    function="{{content}}",
    observation="<tool_response>\n{{content}}\n</tool_response><|Assistant|>",
    prefix="{{bos}}",
    stop_words=("<|end_of_text|>",),
    is_reasoning=True,
    replace_eos=True,
)
PLAIN.register(
    "youtu_vl",
    user="<|begin_of_text|>user\n{{content}}<|end_of_text|>\n<|begin_of_text|>assistant\n",
    assistant="{{content}}<|end_of_text|>\n",
    system="<|begin_of_text|>system\n{{content}}<|end_of_text|>\n",
    default_system="You are a helpful assistant.",
    stop_words=("<|end_of_text|>",),
)
PLAIN.register(
    "yuan", user="{{content}}{{token:<sep>}}", assistant="{{content}}<eod>\n", stop_words=("<eod>",)
)
