// Sequences and the pages in which their keys and values lie.
#pragma once
#include <memory>
#include <unordered_map>
#include <vector>

#include "spec.h"

namespace ingot {

struct Sequence {
    std::vector<int32_t> blocks;  // of the tokens 32 i to 32 i + 31; never grows beyond what it reserved when opened
    int32_t length = 0;
    uint64_t step = 0;            // the last one that named it
};

// A pool of blocks. A block is what kPage tokens of a sequence need: a page for each layer and kv head, side by side.
// Blocks are given out when a sequence grows into them and come back when it is cut or closed; what an earlier
// sequence left in them stays. Nothing here locks.
class PagedCache {
  public:
    // Room for at least `tokens` tokens; throws Refusal for a form that there is none of.
    PagedCache(const Spec& spec, int64_t tokens, int32_t bits);

    const Cache& form() const { return form_; }
    int64_t free_tokens() const { return int64_t(free_.size()) * kPage; }

    int64_t open();
    void close(int64_t id);
    void trim(int64_t id, int64_t length);
    Sequence& at(int64_t id);  // throws Refusal

    // Blocks that are missing for `length` tokens, and taking them: there must be as many.
    static int64_t missing(const Sequence& sequence, int64_t length);
    void grow(Sequence& sequence, int64_t length);

    uint8_t* page(int32_t block, int32_t layer, int32_t kv_head) const {
        const size_t place = size_t(layer) * size_t(kv_heads_) + size_t(kv_head);
        return bytes_.get() + (size_t(block) * pages_ + place) * page_bytes_;
    }

  private:
    struct Free {
        void operator()(uint8_t* block) const { std::free(block); }
    };

    void shrink(Sequence& sequence, int64_t blocks);

    Cache form_;
    int32_t kv_heads_, positions_;
    size_t page_bytes_, pages_;  // of a block
    std::unique_ptr<uint8_t, Free> bytes_;
    std::vector<int32_t> free_;
    std::unordered_map<int64_t, Sequence> sequences_;
    int64_t opened_ = 0;
};

}  // namespace ingot
