"""Answers of the mesh itself that no route has a part in: they meet the filters of the listener, and what it rewrites."""

from collections.abc import Callable

from meshlib.model.listener import ClientListener
from meshlib.model.outcome import LocalReply
from meshlib.model.request import RequestHead
from meshlib.routing.changes import Changes, Responder
from meshlib.routing.format import Facts
from meshlib.routing.header_filters import filter_changes
from meshlib.routing.headers import response_mutator
from meshlib.routing.local_reply import ReplyRewriter

__all__ = ["compile_unrouted"]


def compile_unrouted(
    listener: ClientListener, facts: Facts | None = None
) -> Callable[[LocalReply, RequestHead], LocalReply] | None:
    """Compile what becomes of such answers; None: nothing. A gRPC call's filters are in its routes, so it meets none.

    Args:
        facts: Of no route; they note what formats speak of.

    Raises:
        ValueError: A regex or a format that is not valid.
    """
    rules, facts = listener.reply_rules, facts or Facts()
    filters = filter_changes(listener.header_filters, ())
    request = Changes(filters.request, is_response=False, facts=facts)
    responder = Responder(
        response_mutator((), facts),
        Changes(filters.response, is_response=True, facts=facts),
        None if rules is None else ReplyRewriter(rules, facts),
    )
    if not responder.changes_replies:
        return None

    def changed(reply: LocalReply, head: RequestHead) -> LocalReply:
        if not head.profile.answers_itself:
            return reply
        if request:
            head = request.apply_to(head)
        return responder.local(reply, head)

    return changed
