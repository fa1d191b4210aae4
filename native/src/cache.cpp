#include "cache.h"

#include <cstdlib>
#include <new>

namespace ingot {
namespace {

using std::to_string;

constexpr int64_t kMostTokens = int64_t(1) << 40;

int64_t blocks_of(int64_t tokens) { return (tokens + kPage - 1) / kPage; }

}  // namespace

PagedCache::PagedCache(const Spec& spec, int64_t tokens, int32_t bits)
    : form_{bits, spec.head_dim}, kv_heads_(spec.kv_heads), positions_(spec.positions) {
    if (bits != 32 && bits != 8) {
        throw Refusal(INGOT_BAD_SPEC, "cache_bits must be 32 or 8; got " + to_string(bits) + ".");
    }
    if (tokens < 1 || tokens > kMostTokens) {
        throw Refusal(INGOT_BAD_SPEC, "cache_tokens must be between 1 and " + to_string(kMostTokens) + "; got " +
                                          to_string(tokens) + ".");
    }
    page_bytes_ = page_bytes(form_);
    pages_ = size_t(spec.layers) * size_t(spec.kv_heads);
    const int64_t blocks = blocks_of(tokens);
    size_t size_bytes = 0;
    if (blocks > INT32_MAX || __builtin_mul_overflow(size_t(blocks), pages_ * page_bytes_, &size_bytes) ||
        size_bytes > SIZE_MAX / 2) {
        throw std::bad_alloc();
    }
    // Large blocks of memory come untouched from the system: what no sequence grows into costs nothing.
    bytes_.reset(static_cast<uint8_t*>(std::aligned_alloc(64, size_bytes)));
    if (bytes_ == nullptr) throw std::bad_alloc();
    free_.reserve(size_t(blocks));
    for (int64_t block = blocks; block-- > 0;) free_.push_back(int32_t(block));
}

int64_t PagedCache::open() {
    Sequence sequence;
    sequence.blocks.reserve(size_t(blocks_of(positions_)));
    const int64_t id = opened_ + 1;
    sequences_.emplace(id, std::move(sequence));
    return opened_ = id;
}

Sequence& PagedCache::at(int64_t id) {
    const auto found = sequences_.find(id);
    if (found == sequences_.end()) {
        const bool was_open = id >= 1 && id <= opened_;
        throw Refusal(INGOT_BAD_INPUT, "Sequence " + to_string(id) + " must be open; it was " +
                                           (was_open ? "closed" : "never opened") + ". Open another.");
    }
    return found->second;
}

void PagedCache::close(int64_t id) {
    shrink(at(id), 0);
    sequences_.erase(id);
}

void PagedCache::trim(int64_t id, int64_t length) {
    Sequence& sequence = at(id);
    if (length < 0 || length > sequence.length) {
        throw Refusal(INGOT_BAD_INPUT, "A sequence can be trimmed to between 0 and its length, " +
                                           to_string(sequence.length) + "; got " + to_string(length) + ".");
    }
    sequence.length = int32_t(length);
    shrink(sequence, blocks_of(length));
}

int64_t PagedCache::missing(const Sequence& sequence, int64_t length) {
    return blocks_of(length) - int64_t(sequence.blocks.size());
}

// A block leaves one list before it enters the other: what a fork copies in between has it in none, never in both.
void PagedCache::grow(Sequence& sequence, int64_t length) {
    for (int64_t count = missing(sequence, length); count > 0; --count) {
        const int32_t block = free_.back();
        free_.pop_back();
        sequence.blocks.push_back(block);
    }
}

void PagedCache::shrink(Sequence& sequence, int64_t blocks) {
    while (int64_t(sequence.blocks.size()) > blocks) {
        const int32_t block = sequence.blocks.back();
        sequence.blocks.pop_back();
        free_.push_back(block);
    }
}

}  // namespace ingot
