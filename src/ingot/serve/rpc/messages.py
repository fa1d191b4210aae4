"""Messages of the Open Inference Protocol's gRPC service, built from a table.

The numbers are those of the published `open_inference_grpc.proto`
(https://github.com/kserve/open-inference-protocol/tree/main/specification/protocol); what Triton
adds to it, the stream and two kinds of parameter, has those of its `grpc_service.proto`
(https://github.com/triton-inference-server/common/tree/main/protobuf). Building them here needs
protobuf, which the core has, and no generated code.
"""

from functools import cache
from typing import Any

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
_PARAMETERS = "map InferParameter"
# message: {field: (number, type)}; `*` repeats, `map` maps names to messages.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": (1, "bool")},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": (1, "bool")},
    "ModelReadyRequest": {"name": (1, "string"), "version": (2, "string")},
    "ModelReadyResponse": {"ready": (1, "bool")},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {
        "name": (1, "string"), "version": (2, "string"), "extensions": (3, "*string"),
    },
    "ModelMetadataRequest": {"name": (1, "string"), "version": (2, "string")},
    "TensorMetadata": {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "*int64")},
    "ModelMetadataResponse": {
        "name": (1, "string"), "versions": (2, "*string"), "platform": (3, "string"),
        "inputs": (4, "*TensorMetadata"), "outputs": (5, "*TensorMetadata"),
    },
    "InferParameter": {
        "bool_param": (1, "bool"), "int64_param": (2, "int64"), "string_param": (3, "string"),
        "double_param": (4, "double"), "uint64_param": (5, "uint64"),
    },
    "InferTensorContents": {
        "bool_contents": (1, "*bool"), "int_contents": (2, "*int32"),
        "int64_contents": (3, "*int64"), "uint_contents": (4, "*uint32"),
        "uint64_contents": (5, "*uint64"), "fp32_contents": (6, "*float"),
        "fp64_contents": (7, "*double"), "bytes_contents": (8, "*bytes"),
    },
    "InferInputTensor": {
        "name": (1, "string"), "datatype": (2, "string"), "shape": (3, "*int64"),
        "parameters": (4, _PARAMETERS), "contents": (5, "InferTensorContents"),
    },
    "InferRequestedOutputTensor": {"name": (1, "string"), "parameters": (2, _PARAMETERS)},
    "ModelInferRequest": {
        "model_name": (1, "string"), "model_version": (2, "string"), "id": (3, "string"),
        "parameters": (4, _PARAMETERS), "inputs": (5, "*InferInputTensor"),
        "outputs": (6, "*InferRequestedOutputTensor"), "raw_input_contents": (7, "*bytes"),
    },
    "InferOutputTensor": {
        "name": (1, "string"), "datatype": (2, "string"), "shape": (3, "*int64"),
        "parameters": (4, _PARAMETERS), "contents": (5, "InferTensorContents"),
    },
    "ModelInferResponse": {
        "model_name": (1, "string"), "model_version": (2, "string"), "id": (3, "string"),
        "parameters": (4, _PARAMETERS), "outputs": (5, "*InferOutputTensor"),
        "raw_output_contents": (6, "*bytes"),
    },
    "ModelStreamInferResponse": {
        "error_message": (1, "string"), "infer_response": (2, "ModelInferResponse"),
    },
}  # fmt: skip


# Any: message classes are made at run time
@cache
def messages() -> dict[str, Any]:
    """Return every message class by name."""
    from google.protobuf import (  # type: ignore[import-untyped] # no stubs
        descriptor_pb2,
        descriptor_pool,
        message_factory,
    )

    file = descriptor_pb2.FileDescriptorProto(
        name="ingot_open_inference.proto", package=PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _add_field(message, field, number, kind)
        if name == "InferParameter":  # one of its fields is set, and which can be told
            message.oneof_decl.add(name="parameter_choice")
            for row in message.field:
                row.oneof_index = 0
    # a pool of its own: a client library in the same process may bring the same names
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in _MESSAGES
    }


def _add_field(message: Any, name: str, number: int, kind: str) -> None:
    from google.protobuf.descriptor_pb2 import (  # type: ignore[import-untyped] # no stubs
        FieldDescriptorProto as Field,
    )

    repeated = kind.startswith(("*", "map "))
    row = message.field.add(
        name=name, number=number, label=Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
    )
    kind = kind.removeprefix("*")
    if kind.startswith("map "):
        entry = message.nested_type.add(name=name.title().replace("_", "") + "Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string")
        _add_field(entry, "value", 2, kind.removeprefix("map "))
        row.type, row.type_name = Field.TYPE_MESSAGE, f".{PACKAGE}.{message.name}.{entry.name}"
    elif kind in _MESSAGES:
        row.type, row.type_name = Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        row.type = Field.Type.Value(f"TYPE_{kind.upper()}")
