/* Covers: lib/template.c lib/template_exec.c lib/template_func.c
 * lib/template_sprig.c lib/template_list.c lib/template_args.h
 * Expected texts are those of Go's text/template (and sprig 3) over the same values. */
#include "lib/template.h"

#include "lib/crypto.h"
#include "tests/test.h"

static struct err e;

static const char data_text[] =
	"{\"TrustDomain\":\"example.org\",\"N\":3,\"F\":1.5,\"Yes\":true,\"Nil\":null,"
	"\"Labels\":{\"app\":\"web\",\"tier\":\"front\"},\"List\":[\"a\",\"b\",\"c\"],"
	"\"Empty\":[],\"Deep\":[{\"Name\":\"x\"},{\"Name\":\"y\"}],\"S\":\"a b\\\"<c>\"}";

static const struct template_field owner_fields[] = { { "Kind", NULL, TEMPLATE_STRING, NULL },
	{ "UID", NULL, TEMPLATE_STRING, NULL }, { NULL, NULL, 0, NULL } };
static const struct template_type owner_type = { "OwnerReference", owner_fields, false };
static const struct template_field meta_fields[] = { { "Name", NULL, TEMPLATE_STRING, NULL },
	{ "UID", NULL, TEMPLATE_STRING, NULL }, { "Labels", NULL, TEMPLATE_MAP, NULL },
	{ "OwnerReferences", NULL, TEMPLATE_LIST, &owner_type },
	{ "CreationTimestamp", NULL, TEMPLATE_TIME, NULL },
	{ "DeletionTimestamp", NULL, TEMPLATE_POINTER, NULL }, { NULL, NULL, 0, NULL } };
static const struct template_type meta_type = { "ObjectMeta", meta_fields, false };
static const struct template_field spec_fields[] = { { "HostNetwork", NULL, TEMPLATE_BOOL, NULL },
	{ NULL, NULL, 0, NULL } };
static const struct template_type spec_type = { "PodSpec", spec_fields, true };
static const struct template_field root_fields[] = { { "TrustDomain", "TrustDomain",
							     TEMPLATE_STRING, NULL },
	{ "PodMeta", "PodMeta", TEMPLATE_STRUCT, &meta_type },
	{ "PodSpec", "PodSpec", TEMPLATE_STRUCT, &spec_type }, { NULL, NULL, 0, NULL } };
static const struct template_type root_type = { "templateData", root_fields, false };

static const char pod_text[] =
	"{\"TrustDomain\":\"example.org\",\"PodMeta\":{\"name\":\"p\",\"uid\":\"u-1\",\"labels\":"
	"{\"app\":\"web\"},\"creationTimestamp\":\"2026-01-02T03:04:05Z\",\"ownerReferences\":"
	"[{\"kind\":\"ReplicaSet\"}]},\"PodSpec\":{\"seLinuxOptions\":{\"level\":\"s0\"},"
	"\"containers\":[{\"image\":\"i:1\",\"terminationMessagePath\":\"/t\"}],"
	"\"dnsPolicy\":\"Default\",\"hostPID\":true}}";

/* The output, or "! " and the error. */
static char *run(
	const char *text, const char *json, const struct template_type *type, unsigned flags)
{
	struct buf b = BUF_INIT;
	struct template *t;
	json_t *data = json_loads(json, 0, NULL);
	int r = template_parse(text, flags, &t, &e);

	CHECK(data);
	if (!r) {
		r = template_execute(t, data, type, &b, &e);
		template_free(t);
	}
	json_decref(data);
	if (r) {
		CHECK_INT(b.len, 0);
		buf_printf(&b, "! %s", e.msg);
	}
	return buf_take_str(&b);
}

struct row {
	const char *text, *want; /* want begins with "! ": an error that contains the rest */
};

static void check_rows(const struct row *rows, size_t n, const char *json,
	const struct template_type *type, unsigned flags)
{
	for (size_t i = 0; i < n; i++) {
		AUTO(free) char *got = run(rows[i].text, json, type, flags);
		const char *want = rows[i].want;

		if (want[0] == '!' ? got[0] != '!' || !strstr(got, want + 2)
				   : strcmp(got, want) != 0)
			TEST_FAIL("%s: got %s, not %s", rows[i].text, got, want);
	}
}

static void test_text(void)
{
	static const struct row rows[] = {
		{ "", "" },
		{ "plain } text }}", "plain } text }}" },
		{ "spiffe://{{ .TrustDomain }}/x", "spiffe://example.org/x" },
		{ "{{.TrustDomain}}", "example.org" },
		{ "a  {{- .N -}}  b", "a3b" },
		{ "a  {{- /* no */ -}}  b", "ab" },
		{ "a {{/* no */}} b", "a  b" },
		{ "a \n{{- if true }} x {{ end -}}\n b", "a x b" },
		{ "{{\"a\\tb\\x41\\u00e9\\101\"}}", "a\tbA\xc3\xa9"
						    "A" },
		{ "{{`raw\\n`}}", "raw\\n" },
		{ "{{'a'}} {{'\\''}} {{0x10}} {{0b101}} {{0o17}} {{1_000}} {{-5}}",
			"97 39 16 5 15 1000 -5" },
		{ "{{1.5}} {{1e3}} {{1e21}} {{.F}} {{0.00001}} {{100000000.0}}",
			"1.5 1000 1e+21 1.5 1e-05 1e+08" },
		{ "{{true}} {{false}} {{.Yes}}", "true false true" },
		{ "{{.Nil}} {{.Missing}} {{.Missing.More}}", "<nil> <no value> <no value>" },
		{ "{{.List}} {{.Labels}} {{.Empty}}", "[a b c] map[app:web tier:front] []" },
		{ "{{print nil}}", "<nil>" },
	};

	check_rows(rows, ARRAY_LEN(rows), data_text, NULL, 0);
}

static void test_control(void)
{
	static const struct row rows[] = {
		{ "{{if .Yes}}y{{else}}n{{end}}", "y" },
		{ "{{if .Nil}}y{{else if eq .N 3}}three{{else}}n{{end}}", "three" },
		{ "{{if .Missing}}y{{else if .Empty}}e{{else}}n{{end}}", "n" },
		{ "{{with .Labels}}{{.app}}-{{$.N}}{{else}}n{{end}}", "web-3" },
		{ "{{with $l := .Labels}}{{$l.app}}{{end}}", "web" },
		{ "{{with .Nil}}{{.x}}{{else with .Labels}}{{.app}}{{end}}", "web" },
		{ "{{range .List}}{{.}},{{end}}", "a,b,c," },
		{ "{{range $i, $e := .List}}{{$i}}{{$e}} {{end}}", "0a 1b 2c " },
		{ "{{range $k, $v := .Labels}}{{$k}}={{$v}};{{end}}", "app=web;tier=front;" },
		{ "{{range .Deep}}{{.Name}}{{end}}", "xy" },
		{ "{{range .Empty}}x{{else}}none{{end}}", "none" },
		{ "{{range .Missing}}x{{else}}none{{end}}", "none" },
		{ "{{range 3}}{{.}}{{end}}", "012" },
		{ "{{range .List}}{{if eq . \"b\"}}{{break}}{{end}}{{.}}{{end}}!", "a!" },
		{ "{{range .List}}{{if eq . \"b\"}}{{continue}}{{end}}{{.}}{{end}}", "ac" },
		{ "{{$x := 1}}{{if true}}{{$x = 2}}{{end}}{{$x}}", "2" },
		{ "{{$x := 1}}{{if true}}{{$x := 2}}{{$x}}{{end}}{{$x}}", "21" },
		{ "{{$x := .Labels}}{{$x.tier}} {{(index .Deep 1).Name}}", "front y" },
		{ "{{.N | printf \"%03d\" | print \"n\"}}", "n003" },
		{ "{{range .N}}{{range $.List}}{{.}}{{break}}{{end}}{{end}}", "aaa" },
	};

	check_rows(rows, ARRAY_LEN(rows), data_text, NULL, 0);
}

static void test_functions(void)
{
	static const struct row rows[] = {
		{ "{{and .Yes .N}} {{and 0 .Missing}} {{or \"\" .N}} {{or 1 (fail \"no\")}}",
			"3 0 3 1" },
		{ "{{not .Yes}} {{not 0}}", "false true" },
		{ "{{eq .N 1 2 3}} {{ne .N 3}} {{lt 1 2}} {{le 2 2}} {{gt 1 2}} {{ge \"b\" \"a\"}}",
			"true false true true false true" },
		{ "{{eq .TrustDomain \"example.org\"}} {{eq .Nil .Missing}}", "true true" },
		{ "{{eq .N \"3\"}}", "! incompatible types for comparison" },
		{ "{{eq .List .List}}", "! non-comparable type" },
		{ "{{lt true false}}", "! invalid type for comparison" },
		{ "{{index .List 1}} {{index .Labels \"app\"}} [{{index .Labels \"no\"}}]",
			"b web []" },
		{ "{{index .Deep 1 \"Name\"}}", "y" },
		{ "{{index .List 3}}", "! index out of range: 3" },
		{ "{{index .Nil 1}}", "! index of untyped nil" },
		{ "{{slice .List 1 2}} {{slice \"abcdef\" 2}} {{slice .TrustDomain 0 3}}",
			"[b] cdef exa" },
		{ "{{slice .List 2 1}}", "! out of range" },
		{ "{{len .List}} {{len .TrustDomain}} {{len .Labels}}", "3 11 2" },
		{ "{{print 1 2 \"a\" 3}}|{{println 1 \"a\"}}", "1 2a3|1 a\n" },
		{ "{{printf \"%s-%d-%v-%q-%x-%t-%%\" \"a\" 5 .List \"b\" \"AB\" true}}",
			"a-5-[a b c]-\"b\"-4142-true-%" },
		{ "{{printf \"%5d|%-5d|%05d|%+d|%x|%.2f|%5s|%-5s|%.2s\" 42 42 -42 42 255 1.0 "
		  "\"ab\" "
		  "\"ab\" \"abc\"}}",
			"   42|42   |-0042|+42|ff|1.00|   ab|ab   |ab" },
		{ "{{printf \"%d\" \"a\"}}", "! verb %d does not fit a string" },
		{ "{{printf \"%s\"}}", "! missing value" },
		{ "{{printf \"a\" 1}}", "! more values" },
		{ "{{printf \"%T\" 1}}", "! verb %T is not supported" },
		{ "{{html .S}} {{urlquery .S}} {{js .S}}",
			"a b&#34;&lt;c&gt; a+b%22%3Cc%3E a b\\\"\\u003Cc\\u003E" },
	};

	check_rows(rows, ARRAY_LEN(rows), data_text, NULL, 0);
}

static void test_sprig(void)
{
	static const struct row rows[] = {
		{ "{{\" a \" | trim | upper}} {{lower \"ABC\"}} {{title \"ab cd\"}} {{untitle \"Ab "
		  "Cd\"}} {{swapcase \"aB\"}} {{initials \"First Try\"}} {{nospace \"a b\"}}",
			"A abc Ab Cd ab cd Ab FT ab" },
		{ "{{trimAll \"$\" \"$5$\"}} {{trimPrefix \"a-\" \"a-b\"}} {{trimSuffix \"-b\" "
		  "\"a-b\"}}",
			"5 b a" },
		{ "{{trunc 3 \"hello\"}} {{trunc -3 \"hello\"}} {{abbrev 5 \"hello world\"}} "
		  "{{substr "
		  "1 3 \"hello\"}} {{repeat 3 \"ab\"}}",
			"hel llo he... el ababab" },
		{ "{{replace \".\" \"-\" .TrustDomain}} {{contains \"ple\" .TrustDomain}} "
		  "{{hasPrefix "
		  "\"ex\" .TrustDomain}} {{hasSuffix \"org\" .TrustDomain}}",
			"example-org true true true" },
		{ "{{quote \"a\" .Nil 1}} {{squote \"a\" 1}} {{cat \"a\" .N}}",
			"\"a\" \"1\" 'a' '1' a 3" },
		{ "{{indent 2 \"a\\nb\"}}{{nindent 1 \"c\"}}", "  a\n  b\n c" },
		{ "{{default \"x\" .Missing}} {{default \"x\" .TrustDomain}} {{.Missing | default "
		  "5}} "
		  "{{empty .Empty}} {{coalesce 0 \"\" .N}} {{all 1 0}} {{any 1 0}} {{ternary \"a\" "
		  "\"b\" true}}",
			"x example.org 5 true 3 false true a" },
		{ "{{sha256sum \"a\"}} {{sha1sum \"a\"}} {{adler32sum \"a\"}}",
			"ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb "
			"86f7e437faa5a7fce15d1ddcb9eaeaea377667b8 6422626" },
		{ "{{b64enc \"hi\"}} {{b64dec \"aGk=\"}} {{b32enc \"hi\"}} {{b32dec \"NBUQ====\"}} "
		  "{{b32enc \"hello\"}}",
			"aGk= hi NBUQ==== hi NBSWY3DP" },
		{ "{{splitList \"/\" \"a/b//c\"}} {{len (splitList \",\" \"\")}} {{len (splitList "
		  "\",\" \"a,\")}} {{join \"-\" .List}} {{splitList \",\" \"x,y\" | join \"/\"}} "
		  "{{join \",\" 5}}",
			"[a b  c] 1 2 a-b-c x/y 5" },
		{ "{{list 1 \"a\" | first}} {{last .List}} {{rest .List}} {{initial .List}} "
		  "{{reverse "
		  ".List}} {{append .List \"d\"}} {{prepend .List \"z\"}} {{concat .List (list "
		  "1)}}",
			"1 c [b c] [a b] [c b a] [a b c d] [z a b c] [a b c 1]" },
		{ "{{uniq (list 1 1 2)}} {{without .List \"b\"}} {{has \"a\" .List}} {{compact "
		  "(list "
		  "0 1 \"\")}} {{sortAlpha (list \"b\" \"a\")}} {{chunk 2 .List}}",
			"[1 2] [a c] true [1] [a b] [[a b] [c]]" },
		{ "{{$d := dict \"a\" 1 \"b\" 2}}{{get $d \"a\"}} {{hasKey $d \"c\"}} {{keys $d}} "
		  "{{values $d}} {{pick $d \"a\"}} {{omit $d \"a\"}} [{{get $d \"c\"}}]",
			"1 false [a b] [1 2] map[a:1] map[b:2] []" },
		{ "{{base \"/a/b\"}} {{dir \"/a/b\"}} {{clean \"/a/../b//c/.\"}} {{ext "
		  "\"a.tar.gz\"}} "
		  "{{isAbs \"/a\"}} {{clean \"../../a/..\"}} {{clean \"\"}} {{clean \"/..\"}} "
		  "{{base "
		  "\"a/\"}} {{dir \"a\"}}",
			"b /a /b/c .gz true ../.. . / a ." },
		{ "{{regexMatch \"^ex.*org$\" .TrustDomain}}", "true" },
		{ "{{plural \"one\" \"many\" 1}} {{toString 5}}", "one 5" },
		{ "{{fail \"because\"}}", "! because" },
		{ "{{upper 5}}", "! expected string; got int" },
		{ "{{first \"a\"}}", "! expected list; got string" },
		{ "{{uuidv4}}", "! function \"uuidv4\" not defined" },
	};

	check_rows(rows, ARRAY_LEN(rows), data_text, NULL, 0);
}

/* What Go knows by its types. */
static void test_types(void)
{
	static const struct row rows[] = {
		{ "{{.PodMeta.Name}} {{.PodMeta.UID}} {{.PodMeta.Labels.app}}", "p u-1 web" },
		{ "[{{.PodMeta.Labels.no}}] [{{index .PodMeta.Labels \"no\"}}]",
			"[<no value>] []" },
		{ "{{.PodMeta.CreationTimestamp}}", "2026-01-02 03:04:05 +0000 UTC" },
		{ "{{.PodMeta.DeletionTimestamp}}", "<nil>" },
		{ "{{(index .PodMeta.OwnerReferences 0).Kind}}[{{(index .PodMeta.OwnerReferences "
		  "0).UID}}]",
			"ReplicaSet[]" },
		{ "{{range .PodMeta.OwnerReferences}}{{.Kind}}{{end}}", "ReplicaSet" },
		{ "{{if .PodMeta}}y{{end}} {{if .PodSpec.HostNetwork}}y{{else}}n{{end}}", "y n" },
		{ "{{.PodSpec.SELinuxOptions.Level}} {{.PodSpec.DNSPolicy}} {{.PodSpec.HostPID}}",
			"s0 Default true" },
		{ "{{(index .PodSpec.Containers 0).Image}}", "i:1" },
		{ "{{range .PodSpec.Containers}}{{.TerminationMessagePath}}{{end}}", "/t" },
		{ "{{.PodMeta.Foo}}", "! can't evaluate field Foo in type ObjectMeta" },
		{ "{{.podMeta}}", "! can't evaluate field podMeta in type templateData" },
		{ "{{.PodMeta.Name.X}}", "! can't evaluate field X in type string" },
		{ "{{.PodMeta.DeletionTimestamp.X}}", "! nil pointer evaluating field X" },
		{ "{{.PodMeta}}", "! a whole ObjectMeta cannot be printed" },
		{ "{{index .PodMeta \"name\"}}", "! can't index item of type ObjectMeta" },
		{ "{{range .PodMeta}}{{end}}", "! range can't iterate over a ObjectMeta" },
	};
	static const struct row strict[] = {
		{ "{{.PodMeta.Labels.app}}", "web" },
		{ "{{.PodMeta.Labels.no}}", "! map has no entry for key \"no\"" },
	};

	check_rows(rows, ARRAY_LEN(rows), pod_text, &root_type, 0);
	check_rows(strict, ARRAY_LEN(strict), pod_text, &root_type, TEMPLATE_MISSING_ERROR);
}

static void test_wrong(void)
{
	static const struct row rows[] = {
		{ "{{", "! unexpected end in operand" },
		{ "{{.N", "! unclosed action" },
		{ "{{.N ", "! unexpected end" },
		{ "{{}}", "! missing value for command" },
		{ "{{if .N}}", "! unexpected EOF" },
		{ "{{if .N}}{{else}}{{else}}{{end}}", "! expected end; found {{else}}" },
		{ "{{end}}", "! unexpected {{end}}" },
		{ "{{else}}", "! unexpected {{else}}" },
		{ "{{foo}}", "! function \"foo\" not defined" },
		{ "{{$x}}", "! undefined variable \"$x\"" },
		{ "{{$x = 1}}", "! undefined variable \"$x\"" },
		{ "{{if true}}{{$x := 1}}{{end}}{{$x}}", "! undefined variable" },
		{ "{{.N 1}}", "! can't give argument to non-function .N" },
		{ "{{1 | 2}}", "! non executable command in pipeline" },
		{ "{{nil}}", "! nil is not a command" },
		{ "{{(1}}", "! unclosed left paren" },
		{ "{{\"a}}", "! unterminated quoted string" },
		{ "{{\"\\q\"}}", "! invalid escape" },
		{ "{{`a}}", "! unterminated raw" },
		{ "{{12a}}", "! bad number syntax" },
		{ "{{99999999999999999999}}", "! bad number syntax" },
		{ "{{/* a }}", "! unclosed comment" },
		{ "{{break}}", "! outside {{range}}" },
		{ "{{define \"a\"}}{{end}}", "! {{define}} is not supported" },
		{ "{{template \"a\"}}", "! {{template}} is not supported" },
		{ "{{block \"a\" .}}{{end}}", "! {{block}} is not supported" },
		{ "a\nb\n{{foo}}", "! template line 3: function" },
		{ "{{len 1 2}}", "! wrong number of args for len: want 1 got 2" },
		{ "{{.List.x}}", "! can't evaluate field x in type slice" },
		{ "{{..}}", "! unexpected" },
		{ "{{.A..B}}", "! unexpected" },
		{ "{{print.A}}", "! unexpected <.>" },
		{ "{{.N}x}", "! unexpected" },
	};

	check_rows(rows, ARRAY_LEN(rows), data_text, NULL, 0);
}

/* Nothing runs away. */
static void test_bounds(void)
{
	static const struct row rows[] = {
		{ "{{range 1000000000}}{{end}}", "! too many steps" },
		{ "{{range 60000}}xx{{end}}", "! too many steps" },
		{ "{{$x := repeat 60000 \"x\"}}{{$x}}{{$x}}", "! output is too long" },
		{ "{{repeat 60000 (repeat 60000 \"x\")}}", "! too long" },
		{ "{{repeat 100000000 \"x\"}}", "! out of range" },
		{ "{{printf \"%1000000d\" 1}}", "! too large" },
	};
	AUTO_BUF struct buf b = BUF_INIT;
	AUTO(free) char *got = NULL;

	check_rows(rows, ARRAY_LEN(rows), data_text, NULL, 0);
	for (int i = 0; i < 100; i++)
		buf_str(&b, "{{if true}}");
	got = run(buf_cstr(&b), data_text, NULL, 0);
	CHECK_CONTAINS(got, "too deep");
	buf_reset(&b);
	free(got);
	buf_str(&b, "{{");
	for (int i = 0; i < 100; i++)
		buf_byte(&b, '(');
	got = run(buf_cstr(&b), data_text, NULL, 0);
	CHECK_CONTAINS(got, "too deep");
	buf_reset(&b);
	free(got);
	for (int i = 0; i < 3000; i++)
		buf_str(&b, "{{1}}");
	got = run(buf_cstr(&b), data_text, NULL, 0);
	CHECK_CONTAINS(got, "too many actions");
	buf_reset(&b);
	free(got);
	for (int i = 0; i < TEMPLATE_TEXT_MAX + 1; i++)
		buf_byte(&b, 'x');
	got = run(buf_cstr(&b), data_text, NULL, 0);
	CHECK_CONTAINS(got, "too long");
}

static void note(void *arg, const char *const *names, size_t n)
{
	struct buf *b = arg;

	for (size_t i = 0; i < n; i++)
		buf_printf(b, ".%s", names[i]);
	buf_byte(b, ' ');
}

static void test_fields(void)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct template *t;

	CHECK_OK(template_parse("{{.A.B}}{{if $.C}}{{range $x := (index .D 1).E}}{{$x.F}}{{end}}"
				"{{else}}{{.G}}{{end}}",
		0, &t, &e));
	template_fields(t, note, &b);
	CHECK_STR(buf_cstr(&b), ".A.B .C .D .E .F .G ");
	template_free(t);
}

TEST_MAIN(TEST(test_text), TEST(test_control), TEST(test_functions), TEST(test_sprig),
	TEST(test_types), TEST(test_wrong), TEST(test_bounds), TEST(test_fields))
