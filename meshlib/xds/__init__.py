"""The client side of xDS without any I/O: bootstrap, names, the stream as a machine, and resources as values.

Protobuf stops here: `decode_resource` turns the bytes of a resource into a value of `meshlib.model` or into errors that
name the fields at fault, once, at the edge. Nothing above this package sees a message.
"""
