// A matrix of weights in whichever form its tensors have, and rows in the form that it multiplies.
#pragma once
#include "arena.h"
#include "kernels.h"

namespace ingot {

enum class Form { eight_bits, four_bits, bf16, floats };

struct Matrix {
    Form form = Form::eight_bits;
    int32_t n = 0, k = 0;           // outputs and inputs
    Weights8 eight{};
    Weights4 four{};
    Weights16 sixteen{};
    const float* weight = nullptr;  // [n][k]
    const float* bias = nullptr;    // [n]

    // Row `i` of the weights in float, without the bias.
    void row(int64_t i, float* x) const;
};

// Whether two matrices read the same rows of an operand.
inline bool reads_alike(const Matrix& a, const Matrix& b) {
    return a.form == b.form && a.k == b.k && (a.form != Form::four_bits || a.four.group == b.four.group);
}

// Rows on their way into a matrix.
struct Operand {
    struct Widths {  // the most that any matrix of a model asks for
        int32_t codes8 = 0, codes4 = 0, groups = 0, cells = 0;

        void cover(const Matrix& matrix);
    };

    void lay_out(Room& room, const Widths& widths, int32_t rows);
    // Makes rows `first` and on from `count` rows of x.
    void fill(const Kernels& kernels, const Matrix& matrix, const float* x, int64_t ld_x, int32_t first,
              int32_t count) const;

    Rows8 rows8{};
    Groups8 groups8{};
    uint8_t* cells = nullptr;       // [rows][k_pad]: what a matrix in bf16 reads
    const float* floats = nullptr;  // [rows][ld_floats]: what a matrix in float reads
    int64_t ld_floats = 0;
};

// The float of a bf16.
float from_bf16(uint16_t value);

// Columns job.first to job.last - 1 of the product; the job's input and weights are filled in. Matrices in float know
// neither `times` nor `plus`.
void multiply(const Kernels& kernels, const Matrix& matrix, const Operand& operand, Linear job);

}  // namespace ingot
