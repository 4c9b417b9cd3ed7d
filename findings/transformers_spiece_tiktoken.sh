#!/usr/bin/env bash
# transformers 5.24.0 without sentencepiece; sentencepiece 0.2.3 in another environment (Python 3.11).
# Reading a folder with ALBERT's config.json and spiece.model needs the package sentencepiece, which transformers does not
# require. The error asks for tiktoken instead, which does not help.
# Observed: the error contains "tiktoken"; with sentencepiece and protobuf installed, the folder is read
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/maker"
"$folder/maker/bin/python" -m pip install --quiet sentencepiece==0.2.3
mkdir "$folder/albert"
echo '{"model_type": "albert", "vocab_size": 40}' >"$folder/albert/config.json"
"$folder/maker/bin/python" - "$folder/albert" <<'PYTHON'
import random
import sys

import sentencepiece

letters = random.Random(0)
lines = [" ".join("".join(letters.choices("abcdef", k=4)) for _ in range(6)) for _ in range(300)]
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines), model_prefix=f"{sys.argv[1]}/spiece", vocab_size=40,
    pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"], minloglevel=2,
)
PYTHON
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet transformers==5.24.0
read_it() {
  "$folder/env/bin/python" -c '
import sys
from transformers import AutoTokenizer
try:
    print("read:", len(AutoTokenizer.from_pretrained(sys.argv[1])), "pieces")
except Exception as error:
    text = " ".join(str(error).split())
    print("refused:", "tiktoken" if "tiktoken" in text else text[:200])
' "$folder/albert" 2>/dev/null
}
before=$(read_it)
"$folder/env/bin/python" -m pip install --quiet sentencepiece==0.2.3 protobuf==7.36.2
after=$(read_it)
echo "without: $before; with: $after"
case "$before/$after" in "refused: tiktoken/read: "*) ;; *) exit 1 ;; esac
