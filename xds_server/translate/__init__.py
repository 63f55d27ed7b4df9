"""Translation of configuration documents into xDS resources, one dialect for each kind of client.

Documents are decoded strictly (`documents`, `schema_*`), checked against each other (`checks`), joined with the registered
instances into services (`services`), and turned into listeners, routes, clusters and endpoints. Every complaint names a
file, line and column, and every resource leads back to the document it was made from.
"""

from xds_server.translate.compiler import compile_documents
from xds_server.translate.validate import validate

__all__ = ["compile_documents", "validate"]
