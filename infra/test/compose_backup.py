"""The mesh of compose.yaml in an encrypted file, made while intents come, and back in new volumes: as docs/how-to/backup.md has it."""

import asyncio
import json
import os
import pathlib
import tempfile
import time

from compose_engine import Failed, say

# Whom everything in the containers belongs to.
USER = 10001
KEPT = [f"kept-{number}" for number in range(3)]
LIMIT_S = 120


def states(account):
    """What REST answers of the intents that are kept: their state, and the instances that run for them."""
    views = {view["id"]: view for view in account.pages("/api/v1/intent/?owner=local")}
    instances = {name: sorted(instance["instance_id"] for instance in views[name]["instances"]) for name in KEPT if name in views}
    return {name: (views[name]["fulfilment_status"], ids) for name, ids in instances.items()}


async def backed_up_and_restored(mesh, person, account, load):
    for name in KEPT:
        await person.command(f"intent.ask.submit.v1.local.{name}", {"intent": person.example})
    await person.fulfilled(KEPT, LIMIT_S)
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, USER, USER)
        recipient = mesh.backup(folder, "key", "/backups/key").stdout.strip()
        create = ["create", "/backups/mesh.age", "--recipient", recipient]
        refused = mesh.backup(folder, *create, "--server-stopped", check=False)
        if refused.returncode == 0 or "although --server-stopped was given; stop it first" not in refused.stderr:
            raise Failed(f"a backup of a server that runs and is said to be stopped: {refused.stdout}{refused.stderr}")
        before = states(account)
        if [state for state, _ in before.values()] != ["FULFILLED"] * len(KEPT):
            raise Failed(f"not FULFILLED before the backup: {before}")
        running = asyncio.create_task(load.run())
        await asyncio.sleep(1)
        sent, begun = len(load.names), time.monotonic()
        made = await asyncio.to_thread(mesh.backup, folder, "--output", "json", *create)
        took_s = time.monotonic() - begun
        load.stopping.set()
        await running
        made = json.loads(made.stdout)
        if not 0 < made["pause_ms"] <= 100:
            raise Failed(f"the server was not paused for a moment: {made}")
        # Into a bucket, too: the mesh's own.
        access, secret = mesh.s3_keys()
        server = {"AWS_ENDPOINT_URL": "http://secure-storage:9000", "AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}
        bucket = "s3://compose/daily/mesh.age"
        mesh.backup(folder, "create", bucket, "--recipient", recipient, environment=server)
        verified = mesh.backup(folder, "--output", "json", "verify", bucket, "--identity", "/backups/key", environment=server)
        if json.loads(verified.stdout)["result"] != "whole":
            raise Failed(f"a backup in a bucket: {verified.stdout}")
        await person.bus.close()
        mesh.down()
        if left := mesh.residue():
            raise Failed(f"left behind before the restore: {', '.join(left)}")

        begun = time.monotonic()
        open_ = ["/backups/mesh.age", "--identity", "/backups/key"]
        mesh.backup(folder, "restore", *open_)
        refused = mesh.backup(folder, "restore", *open_, check=False)
        if refused.returncode == 0 or "has files; restore into a folder that has none" not in refused.stderr:
            raise Failed(f"restored over what is there: {refused.stdout}{refused.stderr}")
        size = pathlib.Path(folder, "mesh.age").stat().st_size
    mesh.up()
    mesh.wait_healthy(mesh.services(), LIMIT_S)
    person.seed_file = mesh.volume("key-person") / "person.nk"
    await person.connect()
    account.sign_in()
    deadline = time.monotonic() + LIMIT_S
    while (after := states(account)) != before:
        if time.monotonic() > deadline:
            raise Failed(f"intents are {after} after the restore, and were {before}")
        await asyncio.sleep(0.5)
    known = {view["id"] for view in account.pages("/api/v1/intent/?owner=local")}
    if lost := [name for name in load.names[:sent] if name not in known]:
        raise Failed(f"{len(lost)} of {sent} intents that were stored before the backup are not in it: {lost[:3]}")
    await person.command("intent.ask.submit.v1.local.restored", {"intent": person.example})
    await person.fulfilled(["restored"], LIMIT_S)
    say(f"backup: {made['files']} files, {size / 1e6:.1f} MB, made in {took_s:.1f} s with intents coming, nats paused {made['pause_ms']:.0f} ms; "
        f"{time.monotonic() - begun:.1f} s from empty volumes to the same {len(KEPT)} intents FULFILLED with the same instances and a new one")
