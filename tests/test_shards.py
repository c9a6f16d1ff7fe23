"""Which client is in which stream, which may never change."""

from __future__ import annotations

import uuid
from collections import Counter
from fnmatch import fnmatchcase
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from msglog._shards import StreamShard, shard_of, shards_of

CLIENT = uuid.UUID("019ac1f2-0000-7000-8000-00000000abcd").bytes


class ShardsTest(SynchronousTestCase):
    def test_fixed(self) -> None:
        """What is in streams by now is looked for where it was put."""
        found = {count: shard_of(CLIENT, count) for count in (1, 2, 3, 4, 8, 64)}
        self.assertEqual(found, {1: 0, 2: 0, 3: 2, 4: 2, 8: 6, 64: 54})
        third = shards_of("AUDIT", 4)[2]
        self.assertEqual(third.name, "AUDIT-3of4")
        subject = "msglog.3of4.019ac1f2-0000-7000-8000-00000000abcd"
        self.assertEqual(third.subject_of(CLIENT), subject)
        self.assertEqual(third.subjects, ("msglog.3of4.*",))
        (one,) = shards_of("AUDIT", 1)
        self.assertEqual((one.name, one.subjects), ("AUDIT", ("msglog.*",)))
        self.assertEqual(one.subject_of(CLIENT), "msglog.019ac1f2-0000-7000-8000-00000000abcd")

    def test_exclusive(self) -> None:
        """Any two numbers of shards have a subject in common, which JetStream gives one stream."""

        def takes(shard: StreamShard, subject: str) -> bool:
            # No client id has a dot, which "*" does not match.
            return any(
                fnmatchcase(subject, given) and given.count(".") == subject.count(".")
                for given in shard.subjects
            )

        for count in (1, 2, 3, 64):
            shards = shards_of("MSGLOG", count)
            self.assertEqual([takes(one, "msglog.sharded") for one in shards].index(True), 0)
            for one in shards:
                others = [other for other in shards if takes(other, one.subject_of(CLIENT))]
                self.assertEqual(others, [one])

    def test_names(self) -> None:
        """A stream's name says which shard it is, and of how many."""
        for count in (1, 2, 10):
            for shard in shards_of("A-b", count):
                self.assertEqual(StreamShard.of_name(shard.name), shard)

    def test_even(self) -> None:
        """Clients of every kind of id are spread evenly."""
        by_chance, numbered = Random(1), [n.to_bytes(16) for n in range(8000)]
        for ids in ([by_chance.randbytes(16) for _ in range(8000)], numbered):
            counts = Counter(shard_of(one, 8) for one in ids)
            self.assertTrue(all(800 < n < 1200 for n in counts.values()), counts)
