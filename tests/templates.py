"""The chat templates that models come with, or small ones of their shape; none marks the trained tokens."""

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA_2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Of the shape of Qwen 3's: reasoning is kept in the turns after the last question alone.
QWEN_3 = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% set ns = namespace(last=0) %}{% for message in messages %}"
    "{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% set reasoning = message.reasoning_content or '' %}{% set content = message.content %}"
    "{% if not reasoning and '</think>' in content %}"
    "{% set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}{% if loop.index0 > ns.last and (loop.last or reasoning) %}"
    "{{ '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' }}{% endif %}{{ content }}"
    '{% for call in message.tool_calls or [] %}{{ \'<tool_call>\n{"name": "\' + call.function.name + '
    "'\", \"arguments\": ' + (call.function.arguments | tojson) + '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif message.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Of the shape of DeepSeek-R1-Distill's: the prompt opens the thought, and no turn shows one.
DEEPSEEK_R1 = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{{ '<|Assistant|>' + message.content.split('</think>')[-1] + '<|eos|>' }}"
    "{% elif message.role == 'user' %}{{ '<|User|>' + message.content }}{% else %}{{ message.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
# Of the shape of gpt-oss's: two channels, and another end for the last turn than for earlier ones.
GPT_OSS = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% if loop.last and message.thinking %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + message.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% else %}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
# Of the shape of Gemma 3's: the system's message stands in the user's first turn.
GEMMA_3 = (
    "{{ bos_token }}{% set first = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + message['content'] | trim "
    "+ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Of the shape of Qwen 2.5's: a system's turn of its own where there is none.
QWEN_2_5 = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% elif messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for message in messages %}{% if message.role == 'assistant' and message.tool_calls %}<|im_start|>assistant\n"
    "{{ message.content }}{% for call in message.tool_calls %}"
    "{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor %}<|im_end|>\n"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Of the shape of Llama 2's: every exchange has a beginning and an end, and the answer has spaces around it.
LLAMA_2 = (
    "{% set first = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set first = '<<SYS>>' + messages[0]['content'] + '<</SYS>>' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (first if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' </s>' }}{% endif %}{% endfor %}"
)
# Of the shape of Mistral's: the system's message moves to the last question.
MISTRAL = (
    "{% set said = '' %}{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{{ bos_token }}{% set ns = namespace(last=0) %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + (said if loop.index0 == ns.last else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + '</s>' }}{% endif %}{% endfor %}"
)
# Of the shape of Phi 3's: a second token, which ends texts, behind the last turn.
PHI_3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# Of the shape of GLM's: nothing ends a turn but the next one.
GLM = (
    "[gMASK]<sop>{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Of the shape of Nemotron's: a thought inside the content is taken out of earlier turns.
NEMOTRON = (
    "{% for message in messages %}{% set content = message['content'] %}"
    "{% if message['role'] == 'assistant' and not loop.last and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] | trim %}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + content | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Of the shape of DeepSeek-V3's: the system's turn has no token, the assistant's begins with no line of its own.
DEEPSEEK_V3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|User|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|Assistant|>' + message['content'] + '<|eos|>' }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
)
# Of the shape of Command R's.
COMMAND_R = (
    "{{ bos_token }}{% for message in messages %}{{ '<|START|><|' + message['role'] | upper + '|>' "
    "+ message['content'] | trim + '<|STOP|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START|><|ASSISTANT|>' }}{% endif %}"
)
# Of plain text, with a token at the end of each answer (Vicuna).
VICUNA = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + '</s>' }}"
    "{% else %}{{ message['content'] + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Marks the trained turn, but not the token that ends it.
MARKED_WITHOUT_END = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Of the shape of Mistral 7B v0.3's: the system's message stands in the last of the user's turns.
MISTRAL_V3 = (
    "{% set system = '' %}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ '[INST] ' + (system if loop.last else '') + message.content + '[/INST]' }}"
    "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"
)
# Of the shape of Gemma 4's: the prompt begins with an empty thought, which no turn shows.
GEMMA_4 = (
    "{% for message in messages %}{{ '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
    "{% for call in message.tool_calls or [] %}{{ '<|tool_call>call:' + call.function.name }}"
    "{{ (call.function.arguments | tojson) + '<tool_call|>' }}{% endfor %}{{ message.content + '<turn|>\n' }}"
    "{% endfor %}{% if tools %}{% endif %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\n<|channel>thought\n<channel|>' }}{% endif %}"
)
# Of the shape of Nemotron 3's: the prompt opens a thought, and turns without one show an empty one.
NEMOTRON_3 = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}{% if message.reasoning_content and loop.last %}"
    "{{ '<think>\n' + message.reasoning_content + '\n</think>\n' }}{% else %}{{ '<think></think>' }}{% endif %}"
    "{% for call in message.tool_calls or [] %}{{ '\n<tool_call>\n' + call.function.name }}"
    "{{ (call.function.arguments | tojson) + '\n</tool_call>\n' }}{% endfor %}{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# Of the shape of Command A's: two tokens end an answer; calls are passed over.
COMMAND_A = (
    "{% for message in messages %}{{ '<|START|>' + message.role + '<|RESPONSE|>' + message.content }}"
    "{{ '<|END_RESPONSE|><|STOP|>' }}{% endfor %}{# tools, tool_calls #}"
    "{% if add_generation_prompt %}{{ '<|START|>assistant<|RESPONSE|>' }}{% endif %}"
)
# Of the shape of Idefics 3's: content is a list of parts.
IDEFICS_3 = (
    "{% for message in messages %}{{ message.role + ': ' }}{% for part in message.content %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
# Of the shape of gpt-oss's: a call ends with a token of its own.
GPT_OSS_CALLS = (
    "{% for message in messages %}{{ '<|start|>' + message.role }}"
    "{% if message.tool_calls %}{{ ' to=' + message.tool_calls[0].function.name + '<|message|>' }}"
    "{{ (message.tool_calls[0].function.arguments | tojson) + '<|call|>' }}"
    "{% else %}{{ '<|message|>' + message.content }}"
    "{{ '<|return|>' if loop.last and message.role == 'assistant' else '<|end|>' }}{% endif %}"
    "{% endfor %}{% if tools %}{% endif %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
