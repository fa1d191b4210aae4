// The kernels of decoders: four-bit layers, and attention over the pages of a cache. Every granted set against the
// definition in doubles and against the scalar reference, on random shapes. Prints 'N passed, N failed'.
//
// decoder_kernels_test [cases per function] [seed]
#include "kernels_check.h"

using checked::about;
using checked::area;
using checked::check;
using checked::difference;
using checked::Guarded;
using checked::same_bits;
using fixture::Aligned;
using fixture::Packed4;
using fixture::Random;
using ingot::kPage;
using ingot::Kernels;

namespace {

// Groups of random rows; the vectors end where the contract says that they end.
struct Groups {
    Groups(int32_t rows, int32_t k, int32_t group)
        : codes(area(rows, k)), scales(area(rows, k / group)), sums(area(rows, k / group)) {}
    ingot::Groups8 rows() { return {codes.data(), scales.data(), sums.data()}; }
    std::vector<int8_t> codes;
    std::vector<float> scales;
    std::vector<int32_t> sums;
};

void test_quantize_groups(const Kernels& set, const Kernels& reference, Random& random) {
    const int32_t group = random.between(0, 1) ? 32 : 128;
    const int32_t rows = random.between(0, 5), groups = random.between(1, 9), k = group * groups;
    const float size = std::ldexp(1.0f, random.between(-140, 120));
    Guarded x(rows, k, random);
    x.fill(random, -size, size);
    const float broken = random.between(0, 1) ? NAN : INFINITY;
    if (rows > 0 && random.between(0, 2) == 0) x.at(0, random.between(0, k - 1)) = broken;
    if (rows > 1)
        for (int32_t c = 0; c < group; ++c) x.at(1, c) = -0.0f;
    Groups got(rows, k, group), expected(rows, k, group);
    set.quantize_groups(x.data(), x.ld(), rows, k, group, got.rows());
    reference.quantize_groups(x.data(), x.ld(), rows, k, group, expected.rows());
    bool near = true;
    for (int32_t i = 0; i < rows * groups; ++i) {
        const float scale = expected.scales[area(i, 1)];
        int32_t sum = 0;
        for (int32_t j = 0; j < group; ++j) {
            const int8_t code = expected.codes[area(i, group) + area(j, 1)];
            const float value = x.at(i / groups, i % groups * group + j);
            sum += code;
            if (scale > 0.0f) near = near && std::fabs(value - code * scale) <= 0.5001f * scale && code >= -127;
            if (!(scale > 0.0f)) near = near && code == 0;
            if (!std::isfinite(value)) near = near && std::isnan(scale);
        }
        near = near && sum == expected.sums[area(i, 1)];
    }
    check(near, about("quantize_groups, the definition: rows, k, group", reference, {rows, k, group}));
    check(got.codes == expected.codes && got.sums == expected.sums && difference(got.scales, expected.scales) == 0.0,
          about("quantize_groups: rows, k, group", set, {rows, k, group}));
}

// Some rows of codes, and a layer.
struct Layer4 : checked::Layer<ingot::Linear4> {
    Layer4(Random& random, int32_t rows, int32_t n, int32_t k, int32_t group)
        : Layer(random, rows, n), packed(random, n, k, group), groups(rows, k, group) {
        for (int8_t& code : groups.codes) code = static_cast<int8_t>(random.between(-127, 127));
        for (float& scale : groups.scales) scale = random.uniform(0.0f, 0.02f);
        for (size_t i = 0; i < groups.codes.size(); ++i) groups.sums[i / area(group, 1)] += groups.codes[i];
        job.x = groups.rows();
        job.weights = &packed.weights();
    }
    ingot::Linear4 from_row(ingot::Linear4 what, int32_t first) const override {
        const size_t k = area(packed.weights().k, 1), count = k / area(packed.weights().group, 1);
        const size_t row = area(first, 1);
        what.x = {what.x.codes + row * k, what.x.scales + row * count, what.x.sums + row * count};
        return what;
    }
    // The definition, without what follows the bias.
    double product(int32_t r, int32_t o) const {
        const ingot::Weights4& w = packed.weights();
        double total = 0.0;
        for (int32_t i = 0; i < w.k; ++i) {
            const double x = groups.codes[area(r, w.k) + area(i, 1)] *
                             static_cast<double>(groups.scales[area(r, w.k / w.group) + area(i / w.group, 1)]);
            total += x * packed.code(o, i) * packed.ratio(o, i / w.group);
        }
        return total * static_cast<double>(w.scales[o]) + static_cast<double>(w.bias[o]);
    }
    Packed4 packed;
    Groups groups;
};

void test_linear4(const Kernels& set, const Kernels& reference, Random& random) {
    const int32_t group = random.between(0, 2) ? 32 : 128, k = group * random.between(1, group == 32 ? 12 : 4);
    const int32_t n = random.between(1, 150), rows = random.between(0, random.between(0, 3) ? 14 : 60);
    Layer4 layer(random, rows, n, k, group);
    if (rows > 2) layer.groups.scales[1 + area(1, k / group)] = NAN;
    checked::check_layer(layer, &Kernels::linear4, set, reference, random, 3e-6,
                         "linear4 of " + std::to_string(k) + " by " + std::to_string(group));
}

void test_linear4_definition(const Kernels& set, Random& random) {
    const int32_t group = random.between(0, 1) ? 32 : 128, k = group * random.between(1, 5);
    const int32_t n = random.between(1, 40), rows = random.between(1, 13);
    Layer4 layer(random, rows, n, k, group);
    layer.job.times = layer.job.plus = nullptr;
    const std::vector<float> got = layer.run(set.linear4, layer.job);
    double most = 0.0, size = 1.0;
    for (int32_t r = 0; r < rows; ++r)
        for (int32_t o = 0; o < n; ++o) {
            const double expected = layer.product(r, o);
            most = std::fmax(most, std::fabs(expected - static_cast<double>(got[area(r, n) + area(o, 1)])));
            size = std::fmax(size, std::fabs(expected));
        }
    check(most < 1e-6 * size,
          about("linear4, the definition: k, group, n, rows", set, {k, group, n, rows}, most / size));
}

// A sequence in a cache. What no token was put into, slots and whole pages, is NaN.
class Sequence {
public:
    Sequence(const Kernels& set, ingot::Cache cache, const std::vector<float>& k, const std::vector<float>& v)
        : cache_(cache), bytes_(page_bytes(cache)),
          memory_(bytes_ * (k.size() / area(cache.head_dim * kPage, 1) + 1)) {
        std::memset(memory_.data(), 0xff, memory_.size());
        for (size_t at = 0; at < memory_.size(); at += bytes_) pages_.push_back(memory_.data() + at);
        for (int32_t t = 0; area(t, cache.head_dim) < k.size(); ++t) {
            const size_t from = area(t, cache.head_dim);
            set.store_page(cache, k.data() + from, v.data() + from, memory_.data() + area(t / kPage, 1) * bytes_,
                           t % kPage);
        }
    }
    const uint8_t* const* pages() const { return pages_.data(); }
    void forget(int32_t pages) {
        for (int32_t p = 0; p < pages; ++p) pages_[area(p, 1)] = nullptr;
    }
    const Aligned<uint8_t>& memory() const { return memory_; }
    double key(int32_t token, int32_t d) const { return value(0, d * kPage + token % kPage, 0, token); }
    double value(int32_t token, int32_t d) const {
        return value(values_offset(cache_), token % kPage * cache_.head_dim + d, kPage, token);
    }

private:
    double value(size_t offset, int32_t index, int32_t scales, int32_t token) const {
        const uint8_t* page = memory_.data() + area(token / kPage, 1) * bytes_;
        if (cache_.bits == 32) return static_cast<double>(reinterpret_cast<const float*>(page + offset)[index]);
        const auto* scale = reinterpret_cast<const float*>(page + scales_offset(cache_)) + scales + token % kPage;
        return reinterpret_cast<const int8_t*>(page + offset)[index] * static_cast<double>(*scale);
    }
    ingot::Cache cache_;
    size_t bytes_;
    Aligned<uint8_t> memory_;
    std::vector<const uint8_t*> pages_;
};

int32_t any_dim(Random& random) {
    const int32_t dims[] = {32, 64, 80, 96, 100, 128};
    return random.between(0, 3) ? dims[random.between(0, 5)] : random.between(1, 140);
}

void test_store_page(const Kernels& set, const Kernels& reference, Random& random) {
    const ingot::Cache cache = {random.between(0, 1) ? 32 : 8, any_dim(random)};
    const int32_t tokens = random.between(1, 40), dim = cache.head_dim;
    const float size = std::ldexp(1.0f, random.between(-120, 95));
    std::vector<float> k = random.floats(area(tokens, dim), -size, size), v = random.floats(k.size(), -size, size);
    for (int32_t d = 0; d < dim; ++d) v[area(d, 1)] = 0.0f;
    if (tokens > 1) k[area(1, dim)] = random.between(0, 1) ? NAN : -INFINITY;
    const Sequence got(set, cache, k, v), expected(reference, cache, k, v);
    check(std::memcmp(got.memory().data(), expected.memory().data(), got.memory().size()) == 0,
          about("store_page: bits, head_dim, tokens", set, {cache.bits, dim, tokens}));
    bool near = true;
    for (int32_t t = 0; t < tokens; ++t) {
        float largest = 0.0f;
        for (int32_t d = 0; d < dim; ++d) largest = std::fmax(largest, std::fabs(v[area(t, dim) + area(d, 1)]));
        const double bound = cache.bits == 8 ? 0.5001 / 127.0 * static_cast<double>(largest) + 1e-30 : 0.0;
        for (int32_t d = 0; d < dim; ++d) {
            const double x = static_cast<double>(v[area(t, dim) + area(d, 1)]);
            near = near && std::fabs(got.value(t, d) - x) <= bound;
            const double y = static_cast<double>(k[area(t, dim) + area(d, 1)]);
            if (cache.bits == 8 && t == 1) near = near && std::isnan(got.key(t, d));
            if (cache.bits == 32) near = near && (got.key(t, d) == y || (std::isnan(y) && std::isnan(got.key(t, d))));
        }
    }
    check(near, about("store_page, what is in the page: bits, head_dim, tokens", set, {cache.bits, dim, tokens}));
}

std::vector<float> run_pages(const Kernels& set, ingot::PagedAttention job, bool* within = nullptr) {
    Random random(1);
    const int32_t columns = job.group * job.cache.head_dim;
    Guarded out(job.rows, columns, random);
    const size_t bytes = set.paged_scratch(job.cache, job.rows, job.group, job.first_row + job.rows);
    Aligned<uint8_t> scratch(bytes);
    std::memset(scratch.data(), 0xff, bytes);  // NaN: nothing may be read before it was written
    job.out = out.data();
    job.ld_out = out.ld();
    job.scratch = scratch.data();
    set.paged_attention(job);
    if (within) *within = out.intact(0, columns);
    std::vector<float> rows;
    for (int32_t r = 0; r < job.rows; ++r) rows.insert(rows.end(), &out.at(r, 0), &out.at(r, 0) + columns);
    return rows;
}

// One head of one row, by the definition.
std::vector<double> attend_exactly(const Sequence& cached, const ingot::PagedAttention& job, int32_t r, int32_t head) {
    const int32_t dim = job.cache.head_dim, position = job.first_row + r;
    const int32_t from = job.window > 0 && position > job.window ? position - job.window : 0;
    std::vector<double> weights, out(area(dim, 1), 0.0);
    double largest = -INFINITY, total = 0.0;
    for (int32_t j = from; j <= position; ++j) {
        double dot = 0.0;
        for (int32_t d = 0; d < dim; ++d)
            dot += static_cast<double>(job.q[r * job.ld_q + head * dim + d]) * cached.key(j, d);
        weights.push_back(dot * static_cast<double>(job.scale));
        largest = std::fmax(largest, weights.back());
    }
    for (double& weight : weights) total += weight = std::exp(weight - largest);
    for (int32_t j = from; j <= position; ++j)
        for (int32_t d = 0; d < dim; ++d)
            out[area(d, 1)] += weights[area(j - from, 1)] / total * cached.value(j, d);
    return out;
}

struct PagedCase {
    PagedCase(const Kernels& set, Random& random)
        : cache{random.between(0, 1) ? 32 : 8, any_dim(random)}, rows(random.between(1, 12)),
          group(random.between(1, random.between(0, 1) ? 1 : 9)),
          first_row(random.between(0, random.between(0, 1) ? 40 : 200)), tokens(first_row + rows),
          k(random.floats(area(tokens, cache.head_dim), -2, 2)), v(random.floats(k.size(), -1, 1)),
          cached(set, cache, k, v), q(rows, group * cache.head_dim, random) {
        q.fill(random, -2.0f, 2.0f);
        job.cache = cache;
        job.q = q.data(), job.ld_q = q.ld();
        job.pages = cached.pages();
        job.rows = rows, job.group = group, job.first_row = first_row;
        job.window = random.between(0, 1) ? 0 : random.between(1, 90);
        job.scale = 1.0f / std::sqrt(static_cast<float>(cache.head_dim));
        if (job.window > 0 && first_row > job.window) cached.forget((first_row - job.window) / kPage);
    }
    std::string name(const Kernels& set, const char* what, double error = 0.0) const {
        return about(what, set, {cache.bits, cache.head_dim, rows, group, first_row, job.window}, error);
    }
    ingot::Cache cache;
    int32_t rows, group, first_row, tokens;
    std::vector<float> k, v;
    Sequence cached;
    Guarded q;
    ingot::PagedAttention job = {};
};

void test_paged_attention(const Kernels& set, const Kernels& reference, Random& random) {
    PagedCase one(set, random);
    bool within = true;
    const std::vector<float> got = run_pages(set, one.job, &within), expected = run_pages(reference, one.job);
    double error = 0.0;
    for (int32_t r = 0; r < one.rows; ++r)
        for (int32_t i = 0; i < one.group; ++i) {
            const std::vector<double> exact = attend_exactly(one.cached, one.job, r, i);
            const size_t at = area(r * one.group + i, one.cache.head_dim);
            for (size_t d = 0; d < exact.size(); ++d)
                error = std::fmax(error, std::fabs(exact[d] - static_cast<double>(got[at + d])));
        }
    check(error < 2e-6, one.name(set, "paged_attention: bits, head_dim, rows, group, first_row, window", error));
    check(difference(got, expected) < 3e-6, one.name(set, "paged_attention, the reference"));
    check(within, one.name(set, "paged_attention writes its rows only"));
    const size_t row = area(one.group, one.cache.head_dim);
    for (int32_t r = 0; r < one.rows; r += random.between(1, 4)) {
        ingot::PagedAttention some = one.job;
        some.rows = random.between(1, one.rows - r);
        some.q += r * some.ld_q;
        some.first_row += r;
        const std::vector<float> alone = run_pages(set, some);
        check(std::memcmp(alone.data(), got.data() + area(r, 1) * row, alone.size() * sizeof(float)) == 0,
              one.name(set, "paged_attention, a prompt in steps"));
        some.rows = some.group = 1;
        const int32_t head = random.between(0, one.group - 1);
        some.q += head * one.cache.head_dim;
        const std::vector<float> single = run_pages(set, some);
        check(std::memcmp(single.data(), got.data() + area(r, 1) * row + area(head, one.cache.head_dim),
                          single.size() * sizeof(float)) == 0,
              one.name(set, "paged_attention, a head alone"));
    }
}

// What later tokens hold reaches no earlier row, and a key that is not finite is not hidden from those that see it.
void test_later_tokens(const Kernels& set, Random& random) {
    PagedCase one(set, random);
    one.job.window = 0;
    const int32_t broken = random.between(0, one.rows - 1), dim = one.cache.head_dim;
    std::vector<float> v = one.v;
    v[area(one.first_row + broken, dim)] = random.between(0, 1) ? NAN : INFINITY;
    const Sequence sound(set, one.cache, one.k, one.v), unsound(set, one.cache, one.k, v);
    one.job.pages = sound.pages();
    const std::vector<float> expected = run_pages(set, one.job);
    one.job.pages = unsound.pages();
    const std::vector<float> got = run_pages(set, one.job);
    const size_t row = area(one.group, dim);
    check(std::memcmp(got.data(), expected.data(), area(broken, 1) * row * sizeof(float)) == 0,
          one.name(set, "paged_attention, rows before a value that is not finite"));
    bool lost = true;
    for (size_t i = area(broken, 1) * row; i < got.size(); i += area(dim, 1)) lost = lost && !std::isfinite(got[i]);
    check(lost, one.name(set, "paged_attention, rows that see a value that is not finite"));
}

void test_set(const Kernels& set, const Kernels& reference, int cases, uint64_t seed) {
    Random random(seed);
    for (int i = 0; i < cases; ++i) {
        test_quantize_groups(set, reference, random);
        test_linear4(set, reference, random);
        test_linear4_definition(set, random);
        test_store_page(set, reference, random);
        test_paged_attention(set, reference, random);
        test_later_tokens(set, random);
    }
}

}  // namespace

int main(int argc, char** argv) { return checked::every_set(argc, argv, test_set); }
