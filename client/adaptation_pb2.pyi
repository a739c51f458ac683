from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("fingerprint", "classes", "methods", "default_method", "max_message_bytes", "max_pixels")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_METHOD_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    classes: _containers.RepeatedScalarFieldContainer[str]
    methods: _containers.RepeatedScalarFieldContainer[str]
    default_method: str
    max_message_bytes: int
    max_pixels: int
    def __init__(self, fingerprint: _Optional[str] = ..., classes: _Optional[_Iterable[str]] = ..., methods: _Optional[_Iterable[str]] = ..., default_method: _Optional[str] = ..., max_message_bytes: _Optional[int] = ..., max_pixels: _Optional[int] = ...) -> None: ...

class AdaptRequest(_message.Message):
    __slots__ = ("opening", "image")
    OPENING_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    opening: Opening
    image: Image
    def __init__(self, opening: _Optional[_Union[Opening, _Mapping]] = ..., image: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...

class Opening(_message.Message):
    __slots__ = ("stream", "method")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    stream: str
    method: str
    def __init__(self, stream: _Optional[str] = ..., method: _Optional[str] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("content", "suffix", "number")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    suffix: str
    number: int
    def __init__(self, content: _Optional[bytes] = ..., suffix: _Optional[str] = ..., number: _Optional[int] = ...) -> None: ...

class AdaptReply(_message.Message):
    __slots__ = ("opened", "adapted")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    ADAPTED_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    adapted: Adapted
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., adapted: _Optional[_Union[Adapted, _Mapping]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("images", "method")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    images: int
    method: str
    def __init__(self, images: _Optional[int] = ..., method: _Optional[str] = ...) -> None: ...

class Adapted(_message.Message):
    __slots__ = ("number", "mask", "accepted", "reason", "loss_before", "loss_after", "entropy", "agreement", "foreground", "reused", "restarted", "seconds")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LOSS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    LOSS_AFTER_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    FOREGROUND_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    RESTARTED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    number: int
    mask: bytes
    accepted: bool
    reason: str
    loss_before: float
    loss_after: float
    entropy: float
    agreement: float
    foreground: float
    reused: bool
    restarted: bool
    seconds: float
    def __init__(self, number: _Optional[int] = ..., mask: _Optional[bytes] = ..., accepted: bool = ..., reason: _Optional[str] = ..., loss_before: _Optional[float] = ..., loss_after: _Optional[float] = ..., entropy: _Optional[float] = ..., agreement: _Optional[float] = ..., foreground: _Optional[float] = ..., reused: bool = ..., restarted: bool = ..., seconds: _Optional[float] = ...) -> None: ...

class ForgetRequest(_message.Message):
    __slots__ = ("stream",)
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: str
    def __init__(self, stream: _Optional[str] = ...) -> None: ...

class ForgetReply(_message.Message):
    __slots__ = ("forgotten",)
    FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    forgotten: bool
    def __init__(self, forgotten: bool = ...) -> None: ...
