"""``tf.train.Example`` without TensorFlow: protobuf reads it by a description that is built here.

The message (tensorflow/core/example/feature.proto and example.proto): an Example has Features, a map from names to
Feature, each a list of bytes, floats or integers. Checksums are CRC-32C, masked as TFRecord files have them.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastselfie.errors import UserError
from fastselfie.pipelines.image_bytes import BadImage

if TYPE_CHECKING:
    from google.protobuf.message import Message

_MASK = 0xA282EAD8


def require_libraries(what: Path) -> None:
    """Raises `UserError` where one that reads TFRecord files is not installed."""
    try:
        import google.protobuf  # noqa: F401
        import google_crc32c  # noqa: F401
    except ImportError:
        raise UserError(
            f"{what} holds TFRecord files, and what reads them is not installed: pip install 'fastselfie[tfrecord]'"
        ) from None


def masked_crc32c(data: bytes) -> int:
    """The checksum of ``data`` as it is stored: rotated and added to, since a checksum of a checksum is weak."""
    import google_crc32c

    plain = google_crc32c.value(data)
    return ((plain >> 15 | plain << 17) + _MASK) & 0xFFFFFFFF


def example(data: bytes) -> Message:
    """The Example in a record. Raises `BadImage` where it is none."""
    from google.protobuf.message import DecodeError

    try:
        return _example_class().FromString(data)
    except DecodeError:
        raise BadImage("is no tf.train.Example") from None


def bytes_of(parsed: Any, name: str) -> bytes | None:
    """The first of a feature's bytes; None where there are none."""
    features = parsed.features.feature
    values = features[name].bytes_list.value if name in features else ()
    return bytes(values[0]) if values else None


def integer_of(parsed: Any, name: str) -> int | None:
    """The first of a feature's integers; None where there are none."""
    features = parsed.features.feature
    values = features[name].int64_list.value if name in features else ()
    return int(values[0]) if values else None


@functools.cache
def _example_class() -> type[Message]:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="fastselfie/example.proto", package="tensorflow", syntax="proto3")
    lists = {"BytesList": field.TYPE_BYTES, "FloatList": field.TYPE_FLOAT, "Int64List": field.TYPE_INT64}
    for name, kind in lists.items():
        file.message_type.add(name=name).field.add(name="value", number=1, label=field.LABEL_REPEATED, type=kind)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind) in enumerate(
        (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), 1
    ):
        _message_field(feature, name, number, kind).oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=field.LABEL_OPTIONAL, type=field.TYPE_STRING)
    _message_field(entry, "value", 2, "Feature")
    _message_field(features, "feature", 1, "Features.FeatureEntry").label = field.LABEL_REPEATED
    _message_field(file.message_type.add(name="Example"), "features", 1, "Features")
    # A pool of our own: TensorFlow or TensorBoard may have put theirs into the common one.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def _message_field(message: Any, name: str, number: int, kind: str) -> Any:
    from google.protobuf import descriptor_pb2

    field = descriptor_pb2.FieldDescriptorProto
    return message.field.add(
        name=name, number=number, label=field.LABEL_OPTIONAL, type=field.TYPE_MESSAGE, type_name=f".tensorflow.{kind}"
    )
