"""Two steps an item: book the order, then send a mail as well as one can.

    ROLLCALL_BOOTSTRAP_SERVERS=localhost:9092 ROLLCALL_API_URL=http://localhost:8080 python examples/orders.py

An order whose mail fails is ``partial``: booked, and not to be booked again. The mails that failed are a batch of their
own afterwards, which knows whose retry it is.
"""

import asyncio
from collections.abc import Callable

from rollcall_client import Rollcall
from rollcall_client.jobs import Created, Job, JobResult, Outcome, Partial, run

Mail = Callable[[str], None]


class Orders(Job):
    name = "orders"

    def __init__(self, book: dict[str, str], mail: Mail) -> None:
        super().__init__()
        self._book = book
        self._mail = mail

    async def handle(self, order: str) -> Outcome:
        if order in self._book:
            raise ValueError(f"{order} was booked before")
        self._book[order] = "booked"
        try:
            self._mail(order)
        except OSError as error:
            return Partial(error)
        return Created()


class Mails(Job):
    name = "order-mails"

    def __init__(self, mail: Mail) -> None:
        super().__init__()
        self._mail = mail

    async def handle(self, order: str) -> None:
        self._mail(order)


async def mails_again(rc: Rollcall, orders: JobResult, mail: Mail) -> JobResult:
    """Send the mails of a run that failed, and nothing else."""
    if rc.api is None:
        raise RuntimeError("which mails failed is asked of Rollcall's API: give api_url")
    unsent = [each["item_id"] async for each in rc.api.items(orders.batch_id) if each["status"] == "partial"]
    return await run(Mails(mail), unsent, rc=rc, retry_of=orders.batch_id)


async def main() -> None:
    down = True

    def mail(order: str) -> None:
        if down and order.endswith("3"):
            raise ConnectionError("the mail server is down")
        print("mailed", order)

    async with Rollcall.from_environment() as rc:
        orders = await run(Orders({}, mail), [f"order-{number}" for number in range(10)], rc=rc)
        print(orders.status, orders.processed, "booked,", orders.partial, "without a mail")
        down = False
        mails = await mails_again(rc, orders, mail)
        print(mails.status, mails.processed, "mails sent after all")


if __name__ == "__main__":
    asyncio.run(main())
