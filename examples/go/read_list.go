// Read one list of a nearcast store in Redis, with the standard library alone.
//
//	go run read_list.go HOST:PORT GENERATOR KEY
//
// Prints [[item, score], ...], best first, without items that the overlay has removed; null if there is no such key.
// The formats are described in docs/store-format.md, the keys in docs/stores.md. Not covered: canaries, a Cluster, and keys
// of more than 480 bytes, which need BLAKE2b.
package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

const tries = 5 // a version may be retired, or a patch made, while a list is read

var errChanged = errors.New("the store changed while it was read")

// Redis is a connection that sends commands in the protocol RESP2.
type Redis struct {
	connection net.Conn
	answers    *bufio.Reader
}

// Do sends a command and returns its answer: nil, []byte, int64 or []any.
func (r *Redis) Do(words ...string) (any, error) {
	var command bytes.Buffer
	fmt.Fprintf(&command, "*%d\r\n", len(words))
	for _, word := range words {
		fmt.Fprintf(&command, "$%d\r\n%s\r\n", len(word), word)
	}
	if _, err := r.connection.Write(command.Bytes()); err != nil {
		return nil, err
	}
	return r.read()
}

func (r *Redis) read() (any, error) {
	line, err := r.answers.ReadString('\n')
	if err != nil {
		return nil, err
	}
	kind, text := line[0], strings.TrimRight(line[1:], "\r\n")
	switch kind {
	case '+':
		return []byte(text), nil
	case '-':
		return nil, errors.New(text)
	}
	number, err := strconv.ParseInt(text, 10, 64)
	if err != nil || kind == ':' {
		return number, err
	}
	if number < 0 {
		return nil, nil
	}
	if kind == '$' {
		data := make([]byte, number+2)
		_, err := io.ReadFull(r.answers, data)
		return data[:number], err
	}
	parts := make([]any, number)
	for i := range parts {
		if parts[i], err = r.read(); err != nil {
			return nil, err
		}
	}
	return parts, nil
}

// Bytes returns the answer of a command that gives one value; nil if there is none.
func (r *Redis) Bytes(words ...string) ([]byte, error) {
	answer, err := r.Do(words...)
	data, _ := answer.([]byte)
	return data, err
}

// Candidate is an item, a string or an int64, with its score.
type Candidate struct {
	Item  any
	Score float32
}

func (c Candidate) MarshalJSON() ([]byte, error) { return json.Marshal([]any{c.Item, c.Score}) }

func encodeKey(key, ids string) (string, error) {
	if ids == "int64" {
		number, err := strconv.ParseInt(key, 10, 64)
		if err != nil {
			return "", nil // in no table whose keys are numbers
		}
		return string(binary.BigEndian.AppendUint64(nil, uint64(number)^1<<63)), nil
	}
	if len(key) > 480 {
		return "", errors.New("keys of more than 480 bytes need BLAKE2b, which the standard library does not have")
	}
	if key == "" {
		return "\x00\xff", nil
	}
	return key, nil
}

func decodeList(value []byte) ([]Candidate, error) {
	if len(value) < 4 || value[0]>>4 != 1 {
		return nil, errors.New("the list has a format that this program does not know")
	}
	kind, n := value[0]&15, int(binary.LittleEndian.Uint16(value[2:]))
	size := map[byte]int{0: 4, 1: 8, 2: 2}[kind]
	if len(value) < 4+n*(4+size) {
		return nil, errors.New("the list is shorter than it says")
	}
	list, ids, text := make([]Candidate, n), value[4+4*n:], value[4+n*(4+size):]
	for i := range list {
		list[i].Score = math.Float32frombits(binary.LittleEndian.Uint32(value[4+4*i:]))
		switch kind {
		case 0:
			list[i].Item = int64(binary.LittleEndian.Uint32(ids[4*i:]))
		case 1:
			list[i].Item = int64(binary.LittleEndian.Uint64(ids[8*i:]))
		default:
			length := int(binary.LittleEndian.Uint16(ids[2*i:]))
			if length > len(text) {
				return nil, errors.New("the list is shorter than it says")
			}
			list[i].Item, text = string(text[:length]), text[length:]
		}
	}
	return list, nil
}

// segment is a part of the patches of a version.
type segment struct {
	Name   string         `json:"name"`
	Counts map[string]int `json:"counts"`
}

// readValue returns the stored list of a key; nil if there is none, errChanged if it must be read again.
func readValue(r *Redis, generator, key string) ([]byte, error) {
	prefix := "nearcast:" + generator
	var pointer struct{ Version int }
	data, err := r.Bytes("GET", prefix+":current")
	if err != nil || data == nil {
		return nil, fmt.Errorf("%s is not published: %v", generator, err)
	}
	if err := json.Unmarshal(data, &pointer); err != nil {
		return nil, err
	}
	version := fmt.Sprintf("%s:v:%d", prefix, pointer.Version)
	answer, err := r.Do("HMGET", version+":facts", "load", "buckets", "facts", "patch_serial")
	if err != nil {
		return nil, err
	}
	facts := answer.([]any)
	if facts[0] == nil {
		return nil, errChanged // retired: the pointer has moved
	}
	var ids struct {
		Queries string `json:"query_ids"`
	}
	if err := json.Unmarshal(facts[2].([]byte), &ids); err != nil {
		return nil, err
	}
	encoded, err := encodeKey(key, ids.Queries)
	if err != nil || encoded == "" {
		return nil, err
	}
	hash := int(crc32.ChecksumIEEE([]byte(encoded)))
	value, err := readPatches(r, prefix, pointer.Version, encoded, hash)
	if err == nil && value == nil {
		buckets, _ := strconv.Atoi(string(facts[1].([]byte)))
		value, err = r.Bytes("HGET", fmt.Sprintf("%s:%s:lists:%d", version, facts[0], hash%buckets), encoded)
	}
	if err != nil {
		return nil, err
	}
	after, err := r.Do("HMGET", version+":facts", "load", "patch_serial") // after the data: it was there then
	if err != nil {
		return nil, err
	}
	if now := after.([]any); !same(now[0], facts[0]) || !same(now[1], facts[3]) {
		return nil, errChanged
	}
	return value, nil
}

func same(left, right any) bool {
	one, _ := left.([]byte)
	other, _ := right.([]byte)
	return bytes.Equal(one, other)
}

// readPatches returns the newest value of a key in the patches: nil if no patch has it, empty if one removes it.
func readPatches(r *Redis, prefix string, version int, key string, hash int) ([]byte, error) {
	data, err := r.Bytes("GET", prefix+":patches")
	if err != nil || data == nil {
		return nil, err
	}
	var patches struct {
		Versions map[string]struct{ Segments []segment }
	}
	if err := json.Unmarshal(data, &patches); err != nil {
		return nil, err
	}
	segments := patches.Versions[strconv.Itoa(version)].Segments
	for i := len(segments) - 1; i >= 0; i-- {
		bucket := hash % segments[i].Counts["buckets"]
		name := fmt.Sprintf("%s:v:%d:p:%s:lists:%d", prefix, version, segments[i].Name, bucket)
		if value, err := r.Bytes("HGET", name, key); err != nil || value != nil {
			return value, err
		}
	}
	return nil, nil
}

// withoutRemoved leaves out the items that the overlay has removed.
func withoutRemoved(r *Redis, generator string, list []Candidate) ([]Candidate, error) {
	kept := []Candidate{}
	if len(list) == 0 {
		return kept, nil
	}
	words := []string{"HMGET", "nearcast:" + generator + ":overlay:entries"}
	for _, candidate := range list {
		words = append(words, entryKey(candidate.Item))
	}
	answer, err := r.Do(words...)
	if err != nil {
		return nil, err
	}
	now := float64(time.Now().UnixMilli()) / 1000
	for i, data := range answer.([]any) {
		var entry struct {
			Value  any
			Until  *float64
			Lifted bool
		}
		if data != nil {
			if err := json.Unmarshal(data.([]byte), &entry); err != nil {
				return nil, err
			}
		}
		if entry.Value != true || entry.Lifted || (entry.Until != nil && *entry.Until <= now) {
			kept = append(kept, list[i])
		}
	}
	return kept, nil
}

// entryKey returns the key of the entry that removes an item, as Python's json module writes it.
func entryKey(item any) string {
	text, isText := item.(string)
	if !isText {
		return fmt.Sprintf("[%d, null]", item)
	}
	escapes := map[rune]string{'"': `\"`, '\\': `\\`, '\n': `\n`, '\r': `\r`, '\t': `\t`, '\b': `\b`, '\f': `\f`}
	var quoted strings.Builder
	for _, letter := range text {
		if escape, found := escapes[letter]; found {
			quoted.WriteString(escape)
		} else if letter < ' ' {
			fmt.Fprintf(&quoted, `\u%04x`, letter)
		} else {
			quoted.WriteRune(letter)
		}
	}
	return `["` + quoted.String() + `", null]`
}

func read(address, generator, key string) ([]Candidate, error) {
	connection, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(5 * time.Second))
	r := &Redis{connection, bufio.NewReader(connection)}
	for i := 0; i < tries; i++ {
		value, err := readValue(r, generator, key)
		if errors.Is(err, errChanged) {
			continue
		}
		if err != nil || len(value) == 0 {
			return nil, err
		}
		list, err := decodeList(value)
		if err != nil {
			return nil, err
		}
		return withoutRemoved(r, generator, list)
	}
	return nil, errChanged
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: read_list HOST:PORT GENERATOR KEY")
		os.Exit(2)
	}
	list, err := read(os.Args[1], os.Args[2], os.Args[3])
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	json.NewEncoder(os.Stdout).Encode(list)
}
