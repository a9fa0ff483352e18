/* Replays the warm-up records of a SavedModel through TensorFlow's C API and compares the answers.

   replay SAVED_MODEL

   Reads SAVED_MODEL/assets.extra/tf_serving_warmup_requests, TFRecords of tensorflow.serving.PredictionLog whose
   responses are what the model answered when it was made: text and whole numbers must be the same, other numbers within
   1e-6 of their size. Prints a line a difference, then the number of requests answered. Exit code: 0 all the same,
   1 something differs, 2 the model or the records cannot be read.

   The tensors of a signature are found in the MetaGraphDef that the C API hands back; of protocol buffers, the few lines
   below read what is needed. */

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"
#include "tensorflow/c/tf_tstring.h"

enum { MAX_TENSORS = 64, MAX_RANK = 8, SHOWN = 10, VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };
static const double TOLERANCE = 1e-6;

typedef struct {
  const uint8_t *data;
  size_t size;
} Span;

typedef struct {
  uint32_t number, wire;
  uint64_t value; /* of a varint */
  Span bytes;     /* of a length-delimited field */
} Field;

typedef struct {
  Span key;
  Span value;
} Entry;

typedef struct {
  TF_DataType type;
  int rank;
  int64_t dims[MAX_RANK];
  int64_t count;
  Span content; /* numbers, as they lie in memory */
  Span message; /* the TensorProto, for its texts */
} Value;

static void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  putchar('\n');
  exit(2);
}

/* Protocol buffers ------------------------------------------------------------------------------------------------ */

static uint64_t varint(Span *rest) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (!rest->size) fail("a message ends within a number.");
    uint8_t byte = *rest->data++;
    rest->size--;
    value |= (uint64_t)(byte & 0x7f) << shift;
    if (!(byte & 0x80)) return value;
  }
  fail("a message holds a number of more than 64 bits.");
  return 0;
}

/* Takes the next field off `rest`; false at its end. */
static bool next(Span *rest, Field *field) {
  if (!rest->size) return false;
  uint64_t tag = varint(rest);
  *field = (Field){.number = (uint32_t)(tag >> 3), .wire = tag & 7};
  size_t length = 0;
  if (field->wire == VARINT) field->value = varint(rest);
  else if (field->wire == BYTES) length = varint(rest);
  else if (field->wire == FIXED64) length = 8;
  else if (field->wire == FIXED32) length = 4;
  else fail("a message holds a field of an unknown kind.");
  if (length > rest->size) fail("a message ends within a field.");
  field->bytes = (Span){rest->data, length};
  rest->data += length;
  rest->size -= length;
  return true;
}

/* The last field of that number, which is the one that counts; empty if there is none. */
static Field get(Span message, uint32_t number) {
  Field field, found = {0};
  while (next(&message, &field))
    if (field.number == number) found = field;
  return found;
}

static Span get_bytes(Span message, uint32_t number) { return get(message, number).bytes; }

static bool same(Span a, Span b) { return a.size == b.size && (!a.size || !memcmp(a.data, b.data, a.size)); }

/* The entries of a map<string, message>. */
static int entries(Span message, uint32_t number, Entry *found) {
  Field field;
  int count = 0;
  while (next(&message, &field)) {
    if (field.number != number) continue;
    if (count == MAX_TENSORS) fail("a map holds more than %d entries.", MAX_TENSORS);
    found[count++] = (Entry){get_bytes(field.bytes, 1), get_bytes(field.bytes, 2)};
  }
  return count;
}

static bool lookup(Span message, uint32_t number, Span key, Span *value) {
  Entry found[MAX_TENSORS];
  int count = entries(message, number, found);
  for (int i = 0; i < count; i++)
    if (same(found[i].key, key)) {
      *value = found[i].value;
      return true;
    }
  return false;
}

/* Tensors --------------------------------------------------------------------------------------------------------- */

static Value read_value(Span message) {
  Value value = {.type = (TF_DataType)get(message, 1).value, .count = 1, .content = get_bytes(message, 4), .message = message};
  Span shape = get_bytes(message, 2);
  Field dim;
  while (next(&shape, &dim)) {
    if (dim.number != 2) continue;
    if (value.rank == MAX_RANK) fail("a record holds a tensor of more than %d dimensions.", MAX_RANK);
    value.dims[value.rank] = (int64_t)get(dim.bytes, 1).value;
    value.count *= value.dims[value.rank++];
  }
  if (value.type != TF_STRING && value.content.size != (size_t)value.count * TF_DataTypeSize(value.type))
    fail("a record holds a tensor whose values do not fill its shape.");
  return value;
}

/* The next text of a TensorProto of type string, "" past the last. */
static Span next_text(Span *rest) {
  Field field;
  while (next(rest, &field))
    if (field.number == 8) return field.bytes;
  return (Span){(const uint8_t *)"", 0};
}

static TF_Tensor *to_tensor(const Value *value) {
  size_t size = value->type == TF_STRING ? sizeof(TF_TString) : TF_DataTypeSize(value->type);
  TF_Tensor *tensor = TF_AllocateTensor(value->type, value->dims, value->rank, (size_t)value->count * size);
  if (value->type == TF_STRING) {
    TF_TString *texts = TF_TensorData(tensor);
    Span rest = value->message;
    for (int64_t i = 0; i < value->count; i++) {
      Span text = next_text(&rest);
      TF_StringInit(&texts[i]);
      TF_StringCopy(&texts[i], (const char *)text.data, text.size);
    }
  } else if (value->count) {
    memcpy(TF_TensorData(tensor), value->content.data, value->content.size);
  }
  return tensor;
}

static void delete_tensor(TF_Tensor *tensor) {
  if (TF_TensorType(tensor) == TF_STRING) {
    TF_TString *texts = TF_TensorData(tensor);
    for (int64_t i = 0; i < TF_TensorElementCount(tensor); i++) TF_StringDealloc(&texts[i]);
  }
  TF_DeleteTensor(tensor);
}

/* Where an answer is not the recorded one; the first place is printed. */
static bool differs(const char *where, Span name, const Value *wanted, const TF_Tensor *got) {
  bool shape = TF_TensorType(got) == wanted->type && TF_NumDims(got) == wanted->rank;
  for (int i = 0; shape && i < wanted->rank; i++) shape = TF_Dim(got, i) == wanted->dims[i];
  if (!shape) {
    printf("%s: `%.*s` has another type or shape than was recorded.\n", where, (int)name.size, name.data);
    return true;
  }
  const void *data = TF_TensorData(got);
  Span rest = wanted->message;
  for (int64_t i = 0; i < wanted->count; i++) {
    char is[128], was[128];
    bool equal;
    if (wanted->type == TF_STRING) {
      const TF_TString *text = (const TF_TString *)data + i;
      Span expected = next_text(&rest);
      Span found = {(const uint8_t *)TF_StringGetDataPointer(text), TF_StringGetSize(text)};
      equal = same(found, expected);
      snprintf(is, sizeof is, "'%.*s'", (int)found.size, found.data);
      snprintf(was, sizeof was, "'%.*s'", (int)expected.size, expected.data);
    } else if (wanted->type == TF_FLOAT) {
      float found = ((const float *)data)[i], expected;
      memcpy(&expected, wanted->content.data + i * sizeof expected, sizeof expected);
      equal = isfinite(found) && fabs((double)found - expected) <= TOLERANCE * fabs((double)expected);
      snprintf(is, sizeof is, "%.9g", found);
      snprintf(was, sizeof was, "%.9g", expected);
    } else {
      size_t size = TF_DataTypeSize(wanted->type);
      const uint8_t *found = (const uint8_t *)data + i * size, *expected = wanted->content.data + i * size;
      int64_t numbers[2] = {0};
      memcpy(&numbers[0], found, size);
      memcpy(&numbers[1], expected, size);
      equal = !memcmp(found, expected, size);
      snprintf(is, sizeof is, "%" PRId64, numbers[0]);
      snprintf(was, sizeof was, "%" PRId64, numbers[1]);
    }
    if (!equal) {
      printf("%s: `%.*s`, value %" PRId64 ", is %s instead of %s.\n", where, (int)name.size, name.data, i, is, was);
      return true;
    }
  }
  return false;
}

/* A signature ----------------------------------------------------------------------------------------------------- */

/* The tensor that a TensorInfo names, "operation:index". */
static TF_Output find_tensor(TF_Graph *graph, Span info) {
  Span name = get_bytes(info, 1);
  char text[1024];
  if (name.size >= sizeof text) fail("a tensor's name is too long.");
  snprintf(text, sizeof text, "%.*s", (int)name.size, name.data);
  char *colon = strrchr(text, ':');
  int index = colon ? atoi(colon + 1) : 0;
  if (colon) *colon = 0;
  TF_Output output = {TF_GraphOperationByName(graph, text), index};
  if (!output.oper) fail("the graph lacks the tensor %s.", text);
  return output;
}

/* Runs a record; true if the answer is another one. */
static bool replay(TF_Session *session, TF_Graph *graph, Span meta_graph, Span record, int number) {
  Span log = get_bytes(record, 6), request = get_bytes(log, 1), response = get_bytes(log, 2), signature;
  Span name = get_bytes(get_bytes(request, 1), 3);
  char where[256];
  snprintf(where, sizeof where, "`%.*s`, request %d", (int)name.size, name.data, number);
  if (!lookup(meta_graph, 5, name, &signature)) {
    printf("%s: the signature is missing.\n", where);
    return true;
  }
  Entry given[MAX_TENSORS], wanted[MAX_TENSORS], offered[MAX_TENSORS];
  int inputs = entries(request, 2, given), outputs = entries(response, 1, wanted);
  TF_Output from[MAX_TENSORS], to[MAX_TENSORS];
  TF_Tensor *fed[MAX_TENSORS] = {0}, *got[MAX_TENSORS] = {0};
  if (entries(signature, 1, offered) != inputs || entries(signature, 2, offered) != outputs) {
    printf("%s: the inputs or outputs are not those of the signature.\n", where);
    return true;
  }
  for (int i = 0; i < inputs + outputs; i++) {
    bool input = i < inputs;
    const Entry *entry = input ? &given[i] : &wanted[i - inputs];
    Span info;
    if (!lookup(signature, input ? 1 : 2, entry->key, &info)) {
      printf("%s: the signature has no `%.*s`.\n", where, (int)entry->key.size, entry->key.data);
      return true;
    }
    *(input ? &from[i] : &to[i - inputs]) = find_tensor(graph, info);
  }
  for (int i = 0; i < inputs; i++) {
    Value value = read_value(given[i].value);
    fed[i] = to_tensor(&value);
  }
  TF_Status *status = TF_NewStatus();
  TF_SessionRun(session, NULL, from, fed, inputs, to, got, outputs, NULL, 0, NULL, status);
  bool other = TF_GetCode(status) != TF_OK;
  if (other) printf("%s: %.200s\n", where, TF_Message(status));
  for (int i = 0; i < outputs && got[i]; i++) {
    Value value = read_value(wanted[i].value);
    other = differs(where, wanted[i].key, &value, got[i]) || other;
  }
  TF_DeleteStatus(status);
  for (int i = 0; i < inputs; i++) delete_tensor(fed[i]);
  for (int i = 0; i < outputs; i++)
    if (got[i]) delete_tensor(got[i]);
  return other;
}

static Span read_file(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) fail("`%s` cannot be read.", path);
  fseek(file, 0, SEEK_END);
  long size = ftell(file);
  rewind(file);
  uint8_t *data = malloc((size_t)size + 1);
  if (!data || fread(data, 1, (size_t)size, file) != (size_t)size) fail("`%s` cannot be read.", path);
  fclose(file);
  return (Span){data, (size_t)size};
}

int main(int argc, char **argv) {
  if (argc != 2) fail("usage: replay SAVED_MODEL");
  char path[4096];
  snprintf(path, sizeof path, "%s/assets.extra/tf_serving_warmup_requests", argv[1]);
  Span rest = read_file(path);
  TF_Graph *graph = TF_NewGraph();
  TF_Status *status = TF_NewStatus();
  TF_SessionOptions *options = TF_NewSessionOptions();
  TF_Buffer *meta_graph = TF_NewBuffer();
  const char *tags[] = {"serve"};
  TF_Session *session = TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, meta_graph, status);
  if (TF_GetCode(status) != TF_OK) fail("`saved_model` cannot be loaded: %.300s", TF_Message(status));
  Span described = {meta_graph->data, meta_graph->length};
  int number = 0, others = 0;
  while (rest.size && others < SHOWN) { /* a TFRecord: length, its checksum, the bytes, their checksum */
    uint64_t length = 0;
    if (rest.size >= 16) memcpy(&length, rest.data, 8);
    if (rest.size < 16 || length > rest.size - 16) fail("the warm-up records end within a record.");
    others += replay(session, graph, described, (Span){rest.data + 12, length}, number++);
    rest.data += length + 16;
    rest.size -= length + 16;
  }
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteGraph(graph);
  TF_DeleteBuffer(meta_graph);
  TF_DeleteSessionOptions(options);
  TF_DeleteStatus(status);
  printf("%d\n", number - others);
  return others ? 1 : 0;
}
