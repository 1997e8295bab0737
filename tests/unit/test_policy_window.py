"""What a writer evicts by itself: whole blocks, coldest first, nothing that was promised."""

from __future__ import annotations

from kvfs.policy.window import ColdName, choose_coldest

HASH = "%032x"


def share(number: int, block: int, rank: int, *, is_promised: bool = False) -> ColdName:
    key = f"org/model@2@{rank}@{HASH % block}@bfloat16.data".encode()
    return ColdName(number, 1, key, 4096, is_promised)


def test_shares_of_one_block_go_together_even_when_fewer_bytes_would_do() -> None:
    window = [share(1, 7, 0), share(2, 7, 1), share(3, 8, 0), share(4, 8, 1)]
    assert [each.inode for each in choose_coldest(window, 1, 100)] == [1, 2]


def test_a_block_goes_where_its_warmest_share_stands() -> None:
    window = [share(1, 7, 0), share(2, 8, 0), share(3, 8, 1), share(4, 7, 1)]
    assert [each.inode for each in choose_coldest(window, 1, 100)] == [2, 3]
    assert [each.inode for each in choose_coldest(window, 3 * 4096, 100)] == [2, 3, 1, 4]


def test_i5_a_promised_share_keeps_its_whole_block() -> None:
    window = [share(1, 7, 0, is_promised=True), share(2, 7, 1), share(3, 8, 0)]
    assert [each.inode for each in choose_coldest(window, 1 << 30, 100)] == [3]


def test_equal_names_in_two_namespaces_are_two_blocks() -> None:
    other = share(2, 7, 0)._replace(namespace_id=2)
    assert [each.inode for each in choose_coldest([share(1, 7, 0), other], 1, 100)] == [1]


def test_no_more_names_are_chosen_than_allowed() -> None:
    window = [share(number, number // 2, number % 2) for number in range(20)]
    assert len(choose_coldest(window, 1 << 30, 7)) == 6
    assert len(choose_coldest([share(n, 1, n) for n in range(9)], 1 << 30, 5)) == 5
