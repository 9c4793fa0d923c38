"""Finds an inference service, asks it, and says whenever another one takes its place.

    python examples/consumer.py

With RABBITMQ_URL it is looked for at that broker, and AVOCADO_KEY_FILE names a file of lines `HOST KEY`; without, among this
user's services on this machine, whose keys are at hand.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from avocado_magic.discovery import Directory, Instance


def told(instance: Instance | None) -> None:
    print(f"the model is at {instance.url}" if instance else "there is no model now", flush=True)


def main() -> int:
    key_file = os.environ.get("AVOCADO_KEY_FILE")
    with Directory(os.environ.get("RABBITMQ_URL")) as directory:
        directory.subscribe(told)
        instance = directory.wait(30)
        if instance is None:
            print(f"no service was found: {directory.notice or 'start one'}", file=sys.stderr)
            return 1
        with directory.connect(Path(key_file) if key_file else None) as ollama:
            hello = [{"role": "user", "content": "Say hello."}]
            answer = ollama.chat(instance.models[0], messages=hello, options={"num_predict": 20})
            print(answer.message.content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
