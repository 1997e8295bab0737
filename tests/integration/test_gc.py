"""kvfs-gc on a real store: what goes, what stays, twice at once, and through jumps of the clock."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvfs.clock import ManualClock
from kvfs.errors import Corrupt, NotFound
from kvfs.model import AttributeChange, Codec, ObjectPath, Pin, PutOptions
from kvfs.open_store import init_store, open_store
from kvfs.policy.eviction import Reason, Removal
from kvfs.policy.settings import LifecycleSettings, parse_settings
from kvfs.policy.survey import Form
from kvfs.store.collection import Collector, Walk
from kvfs.store.removal import Outcome, Remover
from kvfs.store.store import Store
from kvfs.store.timekeeping import Timekeeper
from kvfs.store.trash import Trash
from kvfs_tools.exit_codes import ExitCode
from kvfs_tools.gc import collect, plan_collection, run

ROOT = Path(__file__).resolve().parents[2]
MONTH = 30 * 86_400
SIZE = 64 * 1024
CAPACITY = 100 * SIZE
SETTINGS = LifecycleSettings(grace_s=0, snapshot_every_s=0, scrub_pass_s=0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock) -> Iterator[Store]:
    init_store(tmp_path / "store", capacity_bytes=CAPACITY, clock=clock)
    with open_store(tmp_path / "store", clock=clock) as opened:
        opened.create_namespace(b"kv")
        yield opened


def put(store: Store, name: str, options: PutOptions | None = None) -> ObjectPath:
    path = ObjectPath(b"kv", name.encode())
    store.put(path, os.urandom(SIZE), options)
    return path


def names(store: Store) -> set[bytes]:
    return {each.key for each in store.list_objects(b"kv").objects}


def test_expired_objects_go_and_their_bytes_come_back(store: Store, clock: ManualClock) -> None:
    put(store, "short", PutOptions(ttl_s=60))
    put(store, "long", PutOptions(ttl_s=6000))
    before = store.usage().resident_bytes
    clock.advance(120)
    report = collect(store, SETTINGS)
    assert report.outcome.removed == {Reason.EXPIRED: 1}
    assert names(store) == {b"long"}
    assert before - store.usage().resident_bytes == SIZE
    assert sum(1 for _ in store.context.files.walk()) == 1


def test_a_full_store_comes_down_to_the_low_watermark_coldest_first(
    store: Store, clock: ManualClock
) -> None:
    paths = []
    for number in range(96):
        paths.append(put(store, f"n{number:03}"))
        clock.advance(1)
    clock.advance(60)
    report = collect(store, LifecycleSettings(grace_s=0, snapshot_every_s=0, high_ratio=0.92))
    gone = {path.key for path in paths} - names(store)
    assert gone == {path.key for path in paths[: len(gone)]}
    assert report.used_after <= 0.9 * CAPACITY
    assert report.used_after > 0.85 * CAPACITY


def test_i5_pinned_objects_outlive_every_collection(store: Store, clock: ManualClock) -> None:
    pinned = put(store, "pinned", PutOptions(pin=Pin.HARD, ttl_s=10))
    for number in range(95):
        put(store, f"n{number:03}")
    clock.advance(1000)
    collect(store, LifecycleSettings(grace_s=0, snapshot_every_s=0, high_ratio=0.2, low_ratio=0.1))
    with store.context.index.read() as txn:
        assert txn.count("lru") < 12
    inodes = {candidate.key for candidate in Walk(store.context)}
    assert pinned.key in inodes


def test_the_shares_of_a_block_leave_together(store: Store, clock: ManualClock) -> None:
    for block in range(48):
        for rank in range(2):
            put(store, f"m@2@{rank}@{block:04x}@half.data")
        clock.advance(1)
    clock.advance(60)
    collect(store, LifecycleSettings(grace_s=0, snapshot_every_s=0, high_ratio=0.9, low_ratio=0.8))
    left = [name.split(b"@")[3] for name in names(store)]
    assert left
    assert all(left.count(block) == 2 for block in left)


def test_an_object_used_since_the_plan_was_made_stays(store: Store, clock: ManualClock) -> None:
    path = put(store, "n")
    clock.advance(100)
    settings = LifecycleSettings(grace_s=0, high_ratio=0.001, low_ratio=0.0001)
    plan = plan_collection(store, settings).plan
    assert len(plan.removals) == 1
    clock.advance(40)
    store.set_attributes(
        store.stat(path).inode, AttributeChange(accessed_s=clock.now_ns() // 10**9)
    )
    outcome = Collector(store.context).execute(plan.removals, plan.now_s)
    assert (outcome.removed, outcome.kept) == ({}, 1)
    assert names(store) == {b"n"}


def test_files_go_while_the_lock_is_left_to_others(store: Store) -> None:
    for number in range(3):
        store.put(ObjectPath(b"kv", b"%d" % number), b"%d" % number)
    context, rests = store.context, []
    trash = Trash(context, has_background=True, pace=lambda: rests.append(remover.resting.is_set()))
    remover = Remover(context, trash)
    inodes = [store.stat(ObjectPath(b"kv", b"%d" % number)).inode for number in range(3)]
    outcome = Outcome()
    removals = [Removal(inode, 1, Reason.CAPACITY, 0, -1) for inode in inodes]
    remover.remove(
        removals, context.now_s() + 1, outcome, is_stopping=lambda: remover.resting.is_set()
    )
    assert (outcome.removed, rests) == ({Reason.CAPACITY: 3}, [])
    assert not remover.resting.is_set()
    remover.resting.set()
    assert trash.empty_waiting() == 3 * 4096
    assert rests == [True] * 3
    remover.close()


def test_rules_reach_what_is_already_there(store: Store, clock: ManualClock) -> None:
    put(store, "chat/a")
    put(store, "prompts/a")
    clock.advance(7200)
    settings = parse_settings({"rule": [{"class": "session", "path": "chat/*"}]})
    assert plan_collection(store, settings).plan.count(Reason.EXPIRED) == 1
    collect(store, settings)
    assert names(store) == {b"prompts/a"}


@pytest.mark.parametrize("jump", [MONTH, -MONTH])
def test_a_jump_of_the_clock_by_a_month_neither_empties_the_store_nor_makes_it_immortal(
    store: Store, clock: ManualClock, jump: int
) -> None:
    put(store, "old", PutOptions(ttl_s=3600))
    put(store, "ruled")
    collect(store, SETTINGS)
    clock.jump(jump)
    store.expire()
    collect(store, SETTINGS)
    assert {candidate.key for candidate in Walk(store.context)} == {b"old", b"ruled"}
    put(store, "new", PutOptions(ttl_s=3600))
    clock.advance(3600 + 60)
    collect(store, SETTINGS)
    assert {candidate.key for candidate in Walk(store.context)} == {b"ruled"}
    clock.advance(8 * 86_400)
    collect(store, SETTINGS)
    assert names(store) == set()


def test_a_jump_is_worked_off_by_whoever_comes_next_when_its_finder_dies(
    store: Store, clock: ManualClock
) -> None:
    for number in range(10):
        put(store, f"n{number}", PutOptions(ttl_s=3600))
    keeper = Timekeeper(store.context)
    keeper.look()
    clock.jump(MONTH)
    assert keeper.look() == MONTH
    with store.context.index.read() as txn:
        assert keeper.pending_s(txn) == MONTH
    assert store.expire() == 0
    assert Timekeeper(store.context).settle() == MONTH
    assert len(names(store)) == 10
    with store.context.index.read() as txn:
        assert keeper.pending_s(txn) == 0


def gc(store: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT}/gateway:{ROOT}/tools", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "kvfs_tools.gc", "--store", str(store), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_two_runs_at_once_both_end_well(tmp_path: Path) -> None:
    init_store(tmp_path / "s", capacity_bytes=CAPACITY)
    with open_store(tmp_path / "s") as store:
        store.create_namespace(b"kv")
        for number in range(40):
            put(store, f"n{number}", PutOptions(ttl_s=1, is_sliding=False))
    runs = [gc(tmp_path / "s", "--json") for _ in range(3)]
    documents = [json.loads(each.communicate(timeout=60)[0]) for each in runs]
    assert [each.returncode for each in runs] == [0, 0, 0]
    assert all("skipped" in each or "examined" in each for each in documents)


@pytest.mark.crash
def test_a_run_killed_anywhere_is_finished_by_the_next(tmp_path: Path) -> None:
    init_store(tmp_path / "s", capacity_bytes=1000 * SIZE)
    (tmp_path / "s" / "lifecycle.toml").write_text(
        'high_watermark = 0.02\nlow_watermark = 0.01\ngrace_seconds = 0\n[[rule]]\nclass = "keep"\n'
    )
    with open_store(tmp_path / "s") as store:
        store.create_namespace(b"kv")
        for number in range(300):
            store.put(ObjectPath(b"kv", b"n%d" % number), os.urandom(4096))
            if number % 2:
                store.set_attributes(
                    store.stat(ObjectPath(b"kv", b"n%d" % number)).inode,
                    AttributeChange(accessed_s=1_700_000_000),
                )
    for delay_ms in range(150, 450, 30):
        victim = gc(tmp_path / "s")
        try:
            victim.wait(timeout=delay_ms / 1000)
        except subprocess.TimeoutExpired:
            victim.send_signal(signal.SIGKILL)
        victim.communicate(timeout=30)
    last = gc(tmp_path / "s", "--json")
    assert json.loads(last.communicate(timeout=60)[0])["examined"] <= 300
    with open_store(tmp_path / "s") as store:
        with store.context.index.read() as txn:
            assert txn.count("trash") == 0
            assert txn.count("blocks") == txn.count("lru")
        files = sum(1 for _ in store.context.files.walk())
        assert files == store.usage().block_count == store.usage().object_count
        for entry in store.list_objects(b"kv").objects:
            assert len(store.get(ObjectPath(b"kv", entry.key))) == 4096


def test_a_dry_run_prints_reasons_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init_store(tmp_path / "s", capacity_bytes=CAPACITY)
    (tmp_path / "s" / "lifecycle.toml").write_text(
        '[[class]]\nname = "blink"\nmax_age_seconds = 1\n[[rule]]\nclass = "blink"\npath = "x*"\n'
    )
    old = ManualClock()
    with open_store(tmp_path / "s", clock=old) as store:
        store.create_namespace(b"kv")
        put(store, "x1")
    assert run(["--store", str(tmp_path / "s"), "--dry-run"]) is ExitCode.OK
    printed = capsys.readouterr().out
    assert "would remove kv/x1" in printed
    assert "expired" in printed
    assert run(["--store", str(tmp_path / "s"), "--explain", "kv/x1", "--json"]) is ExitCode.OK
    assert json.loads(capsys.readouterr().out)["goes"] is True
    with open_store(tmp_path / "s", read_only=True) as store:
        assert names(store) == {b"x1"}


def test_a_misspelt_setting_and_a_missing_store_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--store", str(tmp_path / "none")]) is ExitCode.NO_STORE
    init_store(tmp_path / "s", capacity_bytes=CAPACITY)
    (tmp_path / "s" / "lifecycle.toml").write_text("hihg_watermark = 0.9\n")
    assert run(["--store", str(tmp_path / "s")]) is ExitCode.USAGE
    assert "hihg_watermark" in capsys.readouterr().err


def bf16_like(count: int) -> bytes:
    generator = random.Random(3)
    packed = struct.pack(f"<{count}f", *(generator.gauss(0, 1) for _ in range(count)))
    lanes = bytearray(2 * count)
    lanes[0::2], lanes[1::2] = packed[2::4], packed[3::4]
    return bytes(lanes)


def test_cold_blocks_are_compressed_stay_readable_and_become_raw_when_hot_again(
    store: Store, clock: ManualClock
) -> None:
    data = bf16_like(100_000)
    path = ObjectPath(b"kv", b"cold")
    store.put(path, data)
    with store.open_read(path) as held:
        before = store.usage().resident_bytes
        clock.advance(2 * 3600)
        report = collect(store, SETTINGS)
        assert (report.compressed, report.promoted) == (1, 0)
        assert before - store.usage().resident_bytes == report.saved_bytes > 0.3 * SIZE * 3
        assert held.pread(1000, 5000) == data[1000:6000]
    assert collect(store, SETTINGS).compressed == 0
    with store.open_read(path) as view:
        assert view.codec is Codec.FRAMED
        assert view.pread(123_457, 30_001) == data[123_457 : 123_457 + 30_001]
    store.flush()
    assert collect(store, SETTINGS).promoted == 0  # once is not hot
    for _ in range(2):
        store.get(path)
    store.flush()
    assert collect(store, replace(SETTINGS, promote_opens=0)).promoted == 0
    report = collect(store, SETTINGS)
    assert (report.compressed, report.promoted) == (0, 1)
    with store.open_read(path) as view:
        assert view.codec is Codec.RAW
        assert view.read_all() == data


def test_noise_is_tried_once_and_left_raw(store: Store, clock: ManualClock) -> None:
    put(store, "noise")
    clock.advance(2 * 3600)
    for _ in range(2):
        report = collect(store, SETTINGS)
        assert report.compressed == 0
    assert [candidate.form for candidate in Walk(store.context)] == [Form.SETTLED]


@pytest.mark.expects_warnings
@pytest.mark.parametrize("is_compressed", [False, True])
def test_i1_a_flipped_bit_is_found_by_the_check_and_the_name_becomes_a_miss(
    store: Store, clock: ManualClock, is_compressed: bool
) -> None:
    store.put(ObjectPath(b"kv", b"bad"), bf16_like(60_000))
    put(store, "good")
    clock.advance(2 * 3600 if is_compressed else 10)
    settings = LifecycleSettings(grace_s=0, snapshot_every_s=0, scrub_pass_s=600)
    assert collect(store, settings).compressed == is_compressed
    with store.context.index.read() as txn:
        row = txn.inode(store.stat(ObjectPath(b"kv", b"bad")).inode)
        assert row is not None
        block = txn.block(row.digest)
    assert block is not None
    file = store.path / "blocks" / store.context.files.name(row.digest, block.generation)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.chmod(0o600)
    file.write_bytes(content)
    clock.advance(1800)
    report = collect(store, settings)
    assert report.bad_blocks == 1
    assert store.find(ObjectPath(b"kv", b"good")) is not None
    with pytest.raises((NotFound, Corrupt)):
        store.get(ObjectPath(b"kv", b"bad"))


def test_files_that_no_row_names_are_swept_once_in_a_while(
    store: Store, clock: ManualClock
) -> None:
    put(store, "kept")
    orphan = store.path / "blocks" / "ab" / f"ab{'0' * 62}.{'0' * 15}1"
    for wait_s, is_due in ((0, True), (SETTINGS.sweep_every_s - 1, False), (1, True)):
        orphan.write_bytes(b"x" * 4096)
        clock.advance(wait_s)
        report = collect(store, SETTINGS)
        assert (report.sweep is not None) is is_due
        assert report.sweep is None or report.sweep.orphan_files == 1
        assert orphan.exists() is not is_due
    assert names(store) == {b"kept"}


def test_a_clock_that_went_back_does_not_put_the_sweep_off(
    store: Store, clock: ManualClock
) -> None:
    assert collect(store, SETTINGS).sweep is not None
    clock.jump(-2 * SETTINGS.sweep_every_s)
    assert collect(store, SETTINGS).sweep is not None
    assert collect(store, replace(SETTINGS, sweep_every_s=0)).sweep is None


def test_quarantine_keeps_what_is_new_and_little(store: Store, clock: ManualClock) -> None:
    folder = store.path / "quarantine"
    for name in ("first", "second"):
        (folder / name).write_bytes(os.urandom(SIZE))
    assert store.context.files.trim_quarantine(SIZE, until_s=0) == 1
    assert len(list(folder.iterdir())) == 1
    assert store.context.files.trim_quarantine(SIZE, until_s=1 << 40) == 1
    assert not list(folder.iterdir())
    assert store.sweep().quarantined_files == 0


def test_a_survey_sees_plain_files_as_it_sees_all_others(store: Store) -> None:
    path = put(store, "dir/plain")
    put(store, "dir/lifetime", PutOptions(ttl_s=60))
    put(store, "dir/attributes", PutOptions(attributes={"user.s3.meta.a": b"b"}))
    found = {each.key: each for each in Walk(store.context)}
    entry = store.stat(path)
    plain = found[b"dir/plain"]
    for other in (found[b"dir/lifetime"], found[b"dir/attributes"]):
        assert plain._replace(
            inode=other.inode, key=other.key, expires_at_s=other.expires_at_s, ttl_s=other.ttl_s,
            accessed_s=other.accessed_s, written_s=other.written_s, attributes=other.attributes,
        ) == other  # fmt: skip
    assert (plain.inode, plain.accessed_s) == (entry.inode, entry.accessed_s)
    assert plain.written_s == entry.ctime_ns // 1_000_000_000
