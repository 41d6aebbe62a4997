#!/usr/bin/env bash
# A chat, a stream of server-sent events, and an answer that is one of two words.
set -euo pipefail
url=http://127.0.0.1:8000/v1/chat/completions

curl "$url" -H 'Content-Type: application/json' -d '{
    "messages": [{"role": "user", "content": "What is gravity?"}], "max_tokens": 40, "temperature": 0}'
echo

curl --no-buffer "$url" -H 'Content-Type: application/json' -d '{
    "messages": [{"role": "user", "content": "What is gravity?"}], "max_tokens": 10, "temperature": 0, "stream": true}'

curl "$url" -H 'Content-Type: application/json' -d '{
    "messages": [{"role": "user", "content": "Is water wet?"}], "temperature": 0, "guided_choice": ["yes", "no"]}'
echo
