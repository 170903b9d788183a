#!/bin/bash
# mutations.sh - typical porting mistakes, made one at a time in a copy of the source: each must fail golden
#
#     tests/mutations.sh [BUILD] [NAME...]      all of them, or those named
#
# Needs `make` and BUILD/tests/golden. Plain C kernels, -O1. Prints N passed, N failed: passed means caught.
cd "$(dirname "$0")/.." || exit 1
build=${1:-build}
shift
wanted=" $* "
cc=${CC:-cc}
flags="-std=c99 -D_POSIX_C_SOURCE=200809L -D_FILE_OFFSET_BITS=64 -O1 -w"
passed=0 failed=0
. tests/mutant.sh

# Compiles golden, and the converter where it is what changed, from the copy in $1, and runs it: true when
# it fails, false when it passes or does not compile.
golden_fails() {
    local copy=$1 file=$2
    mkdir -p "$copy/tests"
    if [ "$file" = jamba.h ]; then ln -sf "$PWD/$build/convert" "$copy/convert"
    else $cc $flags -DJAMBA_NO_SIMD -I"$copy/source" -o "$copy/convert" "$copy/source/tools/convert.c" -lm || return 1
    fi
    $cc $flags -DJAMBA_NO_SIMD -I"$copy/source" -c -o "$copy/library.o" "$copy/source/tests/api_second.c" &&
        $cc $flags -I"$copy/source" -o "$copy/tests/golden" "$copy/source/tests/golden.c" "$copy/library.o" -lm -pthread ||
        return 1
    ! "$copy/tests/golden" >"$copy/log" 2>&1
}

# mutate NAME FILE OLD NEW [OLD NEW]: replaces each first OLD, which must be there.
mutate() {
    local name=$1 file=$2 copy
    case $wanted in "  " | *" $name "*) ;; *) return ;; esac
    copy=$build/mutations/$name
    if ! mutant "$copy" "${@:2}"; then
        echo "FAIL $name"
        failed=$((failed + 1))
        return
    fi
    if golden_fails "$copy" "$file"; then
        passed=$((passed + 1))
        rm -rf "$copy"
    else
        echo "FAIL $name: not caught"
        failed=$((failed + 1))
    fi
}

# Without a mistake golden must pass, or a catch means nothing.
control() {
    local copy=$build/mutations/control
    mutant "$copy"
    golden_fails "$copy" jamba.h
    if [ ! -s "$copy/log" ] || ! tail -n 1 "$copy/log" | grep -q ' 0 failed'; then
        cat "$copy/log"
        echo "FAIL control: golden does not pass without a mistake"
        exit 1
    fi
    rm -rf "$copy"
}
control

# ---- norms, activations, positions
mutate eps_other jamba.h 'v_sqrt(v_add(mean, v_set1(eps)))' 'v_sqrt(v_add(mean, v_set1(1e-6f)))'
mutate eps_outside jamba.h 'v_sqrt(v_add(mean, v_set1(eps)))' 'v_add(v_sqrt(mean), v_set1(eps))'
mutate no_final_norm jamba.h \
    'n = jmb_emit_norm(b, JMB_ROLE_FINAL_NORM, b->x, jmb_temp(b, h->hidden, 1), h->eps, JMB_OP_LAST);' 'n = b->x;'
mutate gelu_sigmoid jamba.h 'act == JMB_ACT_GELU ? JMB_K(jmb_gelu)(x)' \
    'act == JMB_ACT_GELU ? v_div(x, v_add(v_set1(1.0f), v_exp(v_mul(x, v_set1(-1.702f)))))'
mutate gelu_tanh jamba.h 'act == JMB_ACT_GELU ? JMB_K(jmb_gelu)(x)' \
    'act == JMB_ACT_GELU ? v_div(x, v_add(v_set1(1.0f), v_exp(v_mul(v_mul(x, v_set1(-1.5957691f)), v_fma(v_mul(x, x), v_set1(0.044715f), v_set1(1.0f))))))'
mutate no_rope jamba.h 'if (b->flags & JMB_ROPE) JMB_K(jmb_rope)' 'if (0) JMB_K(jmb_rope)'
mutate rope_on_queries_only jamba.h \
    'JMB_K(jmb_rotate)(jmb_row(p, &op->out[0], row) + g * b->head_dim, half, sine, cosine);' ''
mutate rope_backwards jamba.h 'v_fnma(b, s, v_mul(a, c))' 'v_fma(b, s, v_mul(a, c))' \
    'v_fma(a, s, v_mul(b, c))' 'v_fnma(a, s, v_mul(b, c))'
mutate rope_interleaved jamba.h 'v_load_part(x + i, n), b = v_load_part(x + half + i, n)' \
    'v_load_part(x + half + i, n), b = v_load_part(x + i, n)'
# ---- attention
mutate gqa_interleaved jamba.h '(g * group + head) * b->head_dim' '(head * b->kv_heads + g) * b->head_dim' \
    'span->first + row, g * group + head)' 'span->first + row, head * b->kv_heads + g)'
mutate no_scale jamba.h 'v_mul(sum[t], v_set1(scale))' 'v_mul(sum[t], v_set1(scale * 0 + 1))'
mutate not_causal jamba.h 'keys = span->position + row + 1' 'keys = span->position + span->rows'
mutate last_key_lost jamba.h 'keys = span->position + row + 1' \
    'keys = span->position + row + (span->position + row == 0)'
mutate no_attention_adapter jamba.h 'if (!b->block->rank) return;' 'if (!b->block->rank || b->block->kind == JMB_ATTENTION) return;'
# ---- mixture of experts and mlp
mutate moe_renormalised jamba.h 'if (b->flags & JMB_RENORMALISE)' 'if (!(b->flags & JMB_RENORMALISE))'
mutate glu_swapped jamba.h 'v_mul(JMB_K(jmb_activation)(gate[t], l->act), up[t])' 'v_mul(JMB_K(jmb_activation)(up[t], l->act), gate[t])'
mutate no_mlp_adapter jamba.h 'if (!b->block->rank) return;' 'if (!b->block->rank || b->block->kind == JMB_MLP) return;'
mutate first_adapter jamba.h '(uint32_t)(b->block - b->model->blocks), role, 0' 'b->block->unit, role, 0'
# ---- mamba
mutate conv_flipped jamba.h 'v_fma(v_load_le(w + j * 64), past, sum)' 'v_fma(v_load_le(w + (taps - 1 - j) * 64), past, sum)' \
    'v_fma(v_load_le(w + j * 64), newest, sum)' 'v_fma(v_load_le(w), newest, sum)'
mutate conv_not_activated jamba.h 'v_store(u, JMB_K(jmb_activation)(sum, op->block->act));' 'v_store(u, sum);'
mutate conv_state_lost jamba.h 'if (taps > 1) v_store(state + (taps - 2) * 16, newest);' ''
mutate a_no_exp tools/families.h 'minus_exp = ' 'minus_exp = 0 && '
mutate no_dt_norm jamba.h 'if (m->flags & JMB_DT_NORM) {
        jmb_emit_norm' 'if (0) {
        jmb_emit_norm'
mutate swap_b_c jamba.h 'op->out[2] = B;' 'op->out[2] = C;' 'op->out[3] = C;' 'op->out[3] = B;'
mutate no_softplus jamba.h 'JMB_K(jmb_softplus)(v_add(v_load(s->dt + i * 16), bias))' \
    'v_add(v_load(s->dt + i * 16), bias)'
mutate no_dt_bias jamba.h 'v_add(v_load(s->dt + i * 16), bias)' 'v_load(s->dt + i * 16)'
mutate no_skip jamba.h 'v_fma(skip, v_load(s.u + i * 16), v_load(s.y + i * 16))' 'v_load(s.y + i * 16)'
mutate no_gate jamba.h 'v_mul(y, v_silu(v_load(s.z + i * 16)))' 'y'
mutate state_reset jamba.h 'float *h = span->state + op->state_at + at * d_state;' \
    'float *h = (float *)memset(span->state + op->state_at + at * d_state, 0, 64 * d_state);'
# ---- mamba2
mutate m2_no_bc_conv jamba.h 'jmb_convolve(b, op, B, JMB_ROLE_CONV_B, JMB_ROLE_CONV_B_BIAS);' ''
mutate m2_group_modulo jamba.h 'group = head / (m->heads / m->n_groups)' 'group = head % m->n_groups'
mutate m2_norm_whole jamba.h 'size_t width = op->block->d_inner / op->block->n_groups, g, i;' 'size_t width = op->block->d_inner, g, i;' \
    'for (g = 0; g < op->block->n_groups; g++)' 'for (g = 0; g < 1; g++)'
mutate m2_norm_eps jamba.h 'op->eps = m->inner_eps;' 'op->eps = m->inner_eps * 100;'
mutate m2_no_gate jamba.h 'v_store(y + i, v_mul(v_load(y + i), v_silu(v_load(z + i))));' ''
mutate m2_no_clamp jamba.h 'dt = v_min(v_set1(m->dt_max), v_max(v_set1(m->dt_min), dt));' ''
mutate m2_decode_no_clamp jamba.h 'dt = v_min(v_set1(m->dt_max), v_max(v_set1(m->dt_min), dt));' \
    'if (p->rows > 1) dt = v_min(v_set1(m->dt_max), v_max(v_set1(m->dt_min), dt));'
mutate m2_order tools/families.h 'case ROWS_Z: *total = zubc + b->heads; return 0;' \
    'case ROWS_Z: *total = zubc + b->heads; return b->d_inner;' \
    'case ROWS_ZU: *total = zubc + b->heads; return b->d_inner;' 'case ROWS_ZU: *total = zubc + b->heads; return 0;'
mutate m2_norm_eps_of_blocks tools/families.h 'b->inner_eps = (float)plan->settings[SET_INNER_EPS];' \
    'b->inner_eps = (float)plan->settings[SET_EPS];'
mutate m2_norm_eps_fixed tools/families.h 'b->inner_eps = (float)plan->settings[SET_INNER_EPS];' 'b->inner_eps = 1e-5f;'
mutate m2_norm_before_gate jamba.h \
    'for (i = 0; i < op->block->d_inner; i += 16) v_store(y + i, v_mul(v_load(y + i), v_silu(v_load(z + i))));' '' \
    'v_mul(v_mul(v_load_part(y + i, n), scale), v_load_part_le(w + i * 4, n))' \
    'v_mul(v_mul(v_mul(v_load_part(y + i, n), scale), v_load_part_le(w + i * 4, n)), v_silu(v_load_part(z + i, n)))'
# ---- shared blocks
mutate zamba_halves tools/families.h 'source->step = rule->rows == ROWS_EVEN || rule->rows == ROWS_ODD ? 2 : 1;' \
    'source->step = 1;' 'case ROWS_ODD: *total = 2 * rows; return 1;' 'case ROWS_ODD: *total = 2 * rows; return rows;'
mutate zamba_scale tools/families.h '(float)(1 / sqrt(plan->settings[SET_SCALE_DIM]))' \
    '(float)(1 / sqrt((double)b->head_dim))'
mutate no_abab tools/families.h 'uint32_t base = plan->hybrids[ordinal % plan_get(plan, SET_MEM_BLOCKS)].block;' \
    'uint32_t base = plan->hybrids[0].block;'
mutate concat_swapped jamba.h 'jmb_emit_join(b, JMB_OP_BESIDE, b->x, b->e, n)' 'jmb_emit_join(b, JMB_OP_BESIDE, b->e, b->x, n)'
mutate shared_residual jamba.h 'jmb_emit_linear(b, y, &part, 1, add ? (uint32_t)JMB_OP_ADD : 0u);' 'jmb_emit_linear(b, y, &part, 1, JMB_OP_ADD);'
mutate residual_of_sum jamba.h 'jmb_emit_join(b, JMB_OP_SUM, b->x, b->a, n)' 'jmb_emit_join(b, JMB_OP_SUM, b->x, b->a, b->x), in = b->x'

[ $((passed + failed)) -gt 0 ] || { echo "no such mutation: $*"; exit 2; }
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
