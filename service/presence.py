"""Work for a client that is there: when it goes away, its wait for a worker ends, and its work at the next step."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import anyio
from fastapi import Request

from service.state import State
from service.workplace import ClientGoneError, Deadline

Result = TypeVar("Result")


async def while_present(request: Request, deadline: Deadline, work: Callable[[], Awaitable[Result]]) -> Result:
    """Await work; abandon it where the client closes the connection first.

    Args:
        request: The request, its body read.
        deadline: What the work checks between its steps.
        work: What to await. A thread that it waits for is waited for until its next check.

    Returns:
        What ``work`` returned.

    Raises:
        ClientGoneError: If the client went away.
    """
    results: list[Result] = []
    errors: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass  # the body has been read; nothing else comes
            deadline.abandon()
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            results.append(await work())
        except Exception as error:  # raised below by itself, not as a group of one
            errors.append(error)
        group.cancel_scope.cancel()
    if results:
        return results[0]
    try:
        if deadline.abandoned or not errors:
            raise ClientGoneError
        raise errors[0]
    finally:
        errors.clear()  # an error's traceback holds this frame, and all that its work held


async def answer(state: State, request: Request, work: Callable[[Deadline], Result]) -> Result:
    """Wait for a worker and do work in it, as long as the client is there.

    Args:
        state: The service.
        request: The request, its body read.
        work: What to do; it checks the deadline between its steps.

    Returns:
        What ``work`` returned.
    """
    deadline = state.deadline()
    return await while_present(request, deadline, lambda: state.workplace.run(partial(work, deadline), deadline))
