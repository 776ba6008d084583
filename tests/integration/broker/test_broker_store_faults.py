"""A store that fails in both ways: nothing acknowledged is lost, and the broker recovers unaided."""

from __future__ import annotations

from services.broker.stores.sqlite import SqliteStore
from services.common.core.errors import Reason, ServiceError
from services.common.testing.faults import Faults
from tests.integration.broker.broker_client import envelope, error_of
from tests.integration.broker.conftest import House


async def start(house: House) -> Faults:
    """Start a broker whose store fails as planned."""
    faults = Faults()
    await house.start(faults.around(SqliteStore.open(house.folder / "mailboxes.sqlite")))
    return faults


def disk_full() -> ServiceError:
    return ServiceError(Reason.DISK_FULL, "no room left", retry_after_ms=1_000)


async def test_a_full_disk_refuses_and_loses_nothing(house: House) -> None:
    faults = await start(house)
    alpha, beta = await house.open("agent/alpha"), await house.open("agent/beta")
    await alpha.send(envelope("m-1", "beta"))
    (held,) = await beta.take(1)
    faults.fail_before("commit", error=disk_full)
    (refused,) = await alpha.send(envelope("m-2", "beta"))
    assert error_of(refused).reason is Reason.DISK_FULL
    (again,) = await alpha.send(envelope("m-2", "beta"))
    assert again.sequence_number == 2
    faults.fail_before("commit", error=disk_full)
    (second,) = await beta.take(1)
    await beta.write(acks=[{"ack_token": held.ack_token}])
    await beta.wait(lambda: beta.refusals)
    assert error_of(beta.refusals[0]).reason is Reason.DISK_FULL
    # It was not settled: the same token still holds it.
    await beta.ack([held, second])


async def test_a_store_that_may_have_kept_it_is_read_again(house: House) -> None:
    faults = await start(house)
    alpha = await house.open("agent/alpha")
    await alpha.send(envelope("m-1", "beta"))
    faults.fail_after("commit")
    faults.fail_before("load", times=2)
    await alpha.write(sends=[envelope("m-2", "beta")])
    error = await alpha.wait_end()
    assert error is not None
    assert error.reason is Reason.STORE_UNAVAILABLE
    # Indefinite: the sender repeats on a new stream, and the disk knows that it was accepted.
    alpha = await house.open("agent/alpha")
    repeated, fresh = await alpha.send(envelope("m-2", "beta"), envelope("m-3", "beta"))
    assert (repeated.sequence_number, fresh.sequence_number) == (2, 3)
    beta = await house.open("agent/beta")
    assert [one.envelope.sequence_number for one in await beta.take(3)] == [1, 2, 3]


async def test_a_store_that_did_not_keep_it_is_read_again(house: House) -> None:
    faults = await start(house)
    alpha = await house.open("agent/alpha")
    await alpha.send(envelope("m-1", "beta"))
    faults.fail_before("commit")
    await alpha.write(sends=[envelope("m-2", "beta")])
    assert await alpha.wait_end() is not None
    alpha = await house.open("agent/alpha")
    (outcome,) = await alpha.send(envelope("m-2", "beta"))
    assert outcome.sequence_number == 2
