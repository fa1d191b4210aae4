// The engine through its C interface, without Python: the program that the sanitizers watch.
#include <algorithm>
#include <ctime>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

#include "engine_check.h"
#include "engine_model.h"
#include "pool.h"

namespace {

struct Encoder {
    Encoder(const RandomModel& model, int threads, const char* isa = nullptr) {
        const ingot_config config = model.config(threads, isa);
        code = ingot_create(&config, &handle, error, sizeof error);
    }
    ~Encoder() { ingot_free(handle); }
    Encoder(const Encoder&) = delete;
    Encoder& operator=(const Encoder&) = delete;

    std::vector<float> run(const RandomBatch& batch, int pool) {
        const int64_t rows = pool == 0 ? batch.tokens() : batch.sequences();
        std::vector<float> out(size_t(rows * ingot_width(handle)));
        code = ingot_run(handle, batch.ids.data(), batch.types.data(), batch.tokens(), batch.offsets.data(),
                         batch.sequences(), out.data(), int64_t(out.size()), error, sizeof error);
        return out;
    }

    ingot_encoder* handle = nullptr;
    int code = 0;
    char error[256] = "";
};

std::vector<RandomModel::Shape> shapes() {
    using Shape = RandomModel::Shape;
    std::vector<Shape> all(1);
    Shape shape;
    shape.pool = 0;
    shape.head = {9};
    all.push_back(shape);
    shape = Shape();
    shape.pool = 2, shape.head = {40, 3}, shape.position = 2;
    all.push_back(shape);
    shape = Shape();
    shape.position = 1, shape.norm_first = 1, shape.gated = 1, shape.window = 5, shape.norm = 1;
    all.push_back(shape);
    shape.causal = 1, shape.window = 0, shape.kv_heads = 1, shape.pool = 3, shape.head_dim = 20, shape.hidden = 50;
    all.push_back(shape);
    shape.bits = 16, shape.eight = "o";
    all.push_back(shape);
    shape = Shape();
    shape.bits = 16, shape.pool = 0, shape.head = {9};
    all.push_back(shape);
    shape = Shape();
    shape.layers = 1, shape.hidden = 1, shape.heads = shape.kv_heads = 1, shape.head_dim = 1, shape.inner = 1;
    all.push_back(shape);
    return all;
}

void sets_and_threads_agree() {
    int number = 0;
    for (const RandomModel::Shape& shape : shapes()) {
        const RandomModel model(shape);
        const RandomBatch batch({7, 1, 140, 33, 64, 65, 128, 2, 100}, shape.vocab);
        Encoder scalar(model, 1, "scalar");
        const std::vector<float> want = scalar.run(batch, shape.pool);
        check(scalar.code == INGOT_OK, std::string("scalar runs: ") + scalar.error);
        for (const std::string& isa : granted()) {
            const std::string name = isa + ", shape " + std::to_string(number);
            Encoder one(model, 1, isa.c_str()), two(model, 2, isa.c_str());
            const std::vector<float> a = one.run(batch, shape.pool), b = two.run(batch, shape.pool);
            check(one.code == INGOT_OK && two.code == INGOT_OK, name + " runs");
            check(a == b, name + ": one and two threads give the same bits");
            check(cosine(a, want) > 0.9995, name + ": answers like scalar's");
        }
        ++number;
    }
}

void calls_allocate_once() {
    RandomModel::Shape shape;
    const RandomModel model(shape);
    const RandomBatch batch({30, 5, 90}, shape.vocab);
    Encoder encoder(model, 2);
    std::vector<float> out(size_t(3 * shape.hidden));
    const auto run = [&] {
        ingot_run(encoder.handle, batch.ids.data(), nullptr, batch.tokens(), batch.offsets.data(), 3, out.data(),
                  int64_t(out.size()), encoder.error, sizeof encoder.error);
    };
    run();
    const int64_t before = allocations;
    for (int i = 0; i < 10; ++i) run();
    const int64_t made = allocations - before;
    check(made == 0, "a call like one before allocates nothing; made " + std::to_string(made) + encoder.error);
}

void idle_threads_sleep() {
    ingot::ThreadPool pool(2);
    usleep(20000);
    const clock_t before = clock();
    usleep(300000);
    const double seconds = double(clock() - before) / CLOCKS_PER_SEC;
    check(seconds < 0.03, "an idle pool takes no processor time; took " + std::to_string(seconds) + " s of 0.3");
}

void long_batches_run_in_pieces() {
    RandomModel::Shape shape;
    const RandomModel model(shape);
    std::vector<int32_t> lengths;
    for (int i = 0; i < 60; ++i) lengths.push_back(1 + i * 37 % 140);
    const RandomBatch batch(lengths, shape.vocab);
    Encoder two(model, 2);
    const std::vector<float> together = two.run(batch, shape.pool);
    bool same = true;
    for (size_t s = 0; s < lengths.size(); ++s) {
        RandomBatch one({}, shape.vocab);
        one.ids.assign(batch.ids.begin() + batch.offsets[s], batch.ids.begin() + batch.offsets[s + 1]);
        one.types.assign(batch.types.begin() + batch.offsets[s], batch.types.begin() + batch.offsets[s + 1]);
        one.offsets.push_back(int64_t(one.ids.size()));
        const std::vector<float> alone = two.run(one, shape.pool);
        same = same && std::equal(alone.begin(), alone.end(), together.begin() + int64_t(s * alone.size()));
    }
    check(same, "sixty sequences give the same bits alone and in company");
}

void callers_wait_for_one_another() {
    RandomModel::Shape shape;
    const RandomModel model(shape);
    const RandomBatch batch({30, 5, 90}, shape.vocab);
    Encoder a(model, 2), b(model, 2);
    const std::vector<float> want = a.run(batch, shape.pool);
    std::vector<int> wrong(4);
    std::vector<std::thread> callers;
    for (size_t i = 0; i < wrong.size(); ++i) {
        callers.emplace_back([&, i] {
            for (int n = 0; n < 25; ++n) {
                std::vector<float> out(want.size());
                ingot_run((i % 2 ? a : b).handle, batch.ids.data(), batch.types.data(), batch.tokens(),
                          batch.offsets.data(), batch.sequences(), out.data(), int64_t(out.size()), nullptr, 0);
                wrong[i] += out != want;
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
    check(wrong == std::vector<int>(4), "four callers of two encoders get the right answers");
}

void pools_start_and_stop() {
    for (int i = 0; i < 200; ++i) {
        ingot::ThreadPool pool(2);
        if (i % 3 == 0) continue;
        std::atomic<int> met{0};
        for (int n = 0; n < 3; ++n) {
            ingot::ThreadPool::Turn turn(pool);
            turn.run(
                [](void* context, int, ingot::Barrier& barrier) {
                    ++*static_cast<std::atomic<int>*>(context);
                    barrier.wait();
                },
                &met);
            if (met != (n + 1) * pool.threads()) return check(false, "every worker runs every job once");
        }
    }
    check(true, "pools start and stop");
}

void workers_wake_after_sleep() {
    ingot::ThreadPool pool(2);
    std::atomic<int> met{0};
    for (int n = 0; n < 20; ++n) {
        usleep(2000);
        ingot::ThreadPool::Turn turn(pool);
        turn.run(
            [](void* context, int worker, ingot::Barrier& barrier) {
                if (worker == 0) usleep(1000);  // the others fall asleep at the barrier
                barrier.wait();
                ++*static_cast<std::atomic<int>*>(context);
            },
            &met);
    }
    check(met == 20 * pool.threads(), "workers wake after sleep");
}

#if !defined(__SANITIZE_THREAD__) && !defined(INGOT_EMULATED_CPU)  // neither follows threads made after a fork
void children_hire_their_own_crew() {
    RandomModel::Shape shape;
    const RandomModel model(shape);
    const RandomBatch batch({30, 5, 90}, shape.vocab);
    Encoder encoder(model, 2);
    const std::vector<float> want = encoder.run(batch, shape.pool);
    const pid_t child = fork();
    if (child == 0) _exit(encoder.run(batch, shape.pool) == want ? 0 : 1);
    int status = -1;
    waitpid(child, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a child answers as its parent");
    check(encoder.run(batch, shape.pool) == want, "the parent goes on");
}
#else
void children_hire_their_own_crew() {}
#endif

void bad_inputs_are_refused() {
    RandomModel::Shape shape;
    const RandomModel model(shape);
    Encoder encoder(model, 2);
    RandomBatch batch({4, 6}, shape.vocab);
    float out[96];
    const auto run = [&](int64_t n_ids, std::vector<int64_t> offsets, int64_t n, int64_t room) {
        return ingot_run(encoder.handle, batch.ids.data(), batch.types.data(), n_ids, offsets.data(), n, out, room,
                         encoder.error, sizeof encoder.error);
    };
    const int64_t huge = INT64_MAX, small = INT64_MIN;
    check(run(10, {0, 4, 10}, 2, 96) == INGOT_OK, "a good call works");
    check(run(10, {0, 4, 10}, 2, 95) == INGOT_BAD_INPUT, "no room for the answer");
    check(run(10, {0, 4, 9}, 2, 96) == INGOT_BAD_INPUT, "offsets end too early");
    check(run(10, {0, 4, 11}, 2, 96) == INGOT_BAD_INPUT, "offsets end too late");
    check(run(10, {0, 0, 10}, 2, 96) == INGOT_BAD_INPUT, "an empty sequence");
    check(run(10, {0, 12, 10}, 2, 96) == INGOT_BAD_INPUT, "offsets that descend");
    check(run(10, {1, 4, 10}, 2, 96) == INGOT_BAD_INPUT, "offsets that begin late");
    check(run(10, {0, huge, 10}, 2, 96) == INGOT_BAD_INPUT, "a huge offset");
    check(run(10, {0, small, 10}, 2, 96) == INGOT_BAD_INPUT, "a huge negative offset");
    check(run(10, {0, 4, 10}, -1, 96) == INGOT_BAD_INPUT, "a negative count of sequences");
    check(run(-1, {0, 4, 10}, 2, 96) == INGOT_BAD_INPUT, "a negative count of ids");
    check(run(0, {0}, 0, 0) == INGOT_OK, "nothing at all");
    for (int32_t id : {-1, 50, INT32_MAX, INT32_MIN}) {
        batch.ids[5] = id;
        check(run(10, {0, 4, 10}, 2, 96) == INGOT_BAD_INPUT, "token id " + std::to_string(id));
    }
    batch.ids[5] = 0, batch.types[3] = 2;
    check(run(10, {0, 4, 10}, 2, 96) == INGOT_BAD_INPUT, "token type 2");
    check(ingot_run(nullptr, nullptr, nullptr, 0, nullptr, 0, nullptr, 0, nullptr, 0) == INGOT_BAD_CALL, "nulls");
    const RandomBatch long_batch({141}, shape.vocab);
    encoder.run(long_batch, shape.pool);
    check(encoder.code == INGOT_BAD_INPUT, "a sequence beyond the positions");
}

void bad_tensors_are_refused(const RandomModel& good) {
    ingot_encoder* handle = nullptr;
    char error[256];
    const auto create = [&](const RandomModel& model) {
        const ingot_config config = model.config(1);
        return ingot_create(&config, &handle, error, sizeof error);
    };
    for (size_t i = 0; i < good.tensors.size(); ++i) {
        const std::string name = good.tensors[i].name;
        RandomModel model(good.shape);
        model.tensors[i].size_bytes += 64;
        check(create(model) == INGOT_BAD_TENSOR, "a larger " + name);
        model.tensors.erase(model.tensors.begin() + int64_t(i));
        const bool is_optional = name.find("norm.bias") != std::string::npos;
        check((create(model) == INGOT_OK) == is_optional, "a missing " + name);
        ingot_free(handle);
        handle = nullptr;
        if (name.find(".bf16") == std::string::npos || name.find("embed") == 0) continue;
        const RandomModel hostile(good.shape);
        static_cast<uint16_t*>(const_cast<void*>(hostile.tensors[i].data))[3] = 0xff80;
        check(create(hostile) == INGOT_BAD_TENSOR, "an infinite " + name);
    }
}

void bad_models_are_refused() {
    ingot_encoder* handle = nullptr;
    char error[256];
    const auto create = [&](const ingot_config& config) { return ingot_create(&config, &handle, error, sizeof error); };
    const RandomModel good{RandomModel::Shape()};
    bad_tensors_are_refused(good);
    RandomModel::Shape in_bf16;
    in_bf16.bits = 16;
    bad_tensors_are_refused(RandomModel(in_bf16));
    ingot_config config = good.config(1);
    config.struct_size -= 1;
    check(create(config) == INGOT_BAD_CALL, "a struct of another size");
    check(create(good.config(-1)) == INGOT_BAD_CALL, "a negative number of threads");
    check(create(good.config(1, "mmx")) == INGOT_NO_SET, "an unknown set");
    for (int32_t ingot_spec::*field :
         {&ingot_spec::layers, &ingot_spec::hidden, &ingot_spec::heads, &ingot_spec::kv_heads, &ingot_spec::head_dim,
          &ingot_spec::inner, &ingot_spec::vocab, &ingot_spec::positions, &ingot_spec::token_types,
          &ingot_spec::position_offset, &ingot_spec::position, &ingot_spec::norm, &ingot_spec::pool,
          &ingot_spec::activation, &ingot_spec::head_norm, &ingot_spec::n_head, &ingot_spec::gated}) {
        for (int32_t value : {INT32_MIN, -2, 1000003, INT32_MAX}) {
            RandomModel model{RandomModel::Shape()};
            model.spec.*field = value;
            check(create(model.config(1)) != INGOT_OK && handle == nullptr, "a hostile size");
        }
    }
    ingot_free(nullptr);
}

}  // namespace

int main() {
    if (!is_cap_granted()) return skipped;
    sets_and_threads_agree();
    long_batches_run_in_pieces();
    calls_allocate_once();
    idle_threads_sleep();
    callers_wait_for_one_another();
    pools_start_and_stop();
    workers_wake_after_sleep();
    children_hire_their_own_crew();
    bad_inputs_are_refused();
    bad_models_are_refused();
    return summary();
}
