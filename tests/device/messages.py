"""A short conversation, and a longer one."""

HELLO = [{"role": "user", "content": "Hello, who are you?"}]
LONGER = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello, who are you?"},
    {"role": "assistant", "content": "I am here."},
    {"role": "user", "content": "And what do you do?"},
]
