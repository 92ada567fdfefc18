"""Checks an exported ledger with pymerkle (the tree) and cryptography (the signature): ledger_root.py KEY FILE."""
import base64
import hashlib
import pathlib
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pymerkle import InmemoryTree

name, _, key = pathlib.Path(sys.argv[1]).read_text().strip().split("+", 2)
key = base64.b64decode(key, validate=True)
text = pathlib.Path(sys.argv[2]).read_text()
body, note = text.split("\n\n", 1)
signed, _, signature = note.partition("\n\n")
signature = base64.b64decode(signature.split(" ")[2].strip(), validate=True)
assert signature[:4] == hashlib.sha256(name.encode() + b"\n" + key).digest()[:4], "another key signed the head"
Ed25519PublicKey.from_public_bytes(key[1:]).verify(signature[4:], (signed + "\n").encode())
_, size, root = signed.split("\n")
tree = InmemoryTree(algorithm="sha256")
for line in body.split("\n")[1:]:
    tree.append_entry(base64.b64decode(line, validate=True))
assert tree.get_size() == int(size), f"{tree.get_size()} entries, the head says {size}"
assert tree.get_root() == base64.b64decode(root), "the entries have another root"
print(f"{size} entries")
